"""Files of multiple-choice benchmarks as published, and their rows as items."""

import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.examples import DataError, check_distinct
from vlm_rlaif_jax.evals.benchmarks import sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Locate
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.settings.eval import EvalRun

LETTERS = 'ABCDEFGHIJ'
_LABEL = re.compile(r'\s*\(?([A-J])[.):]\s*')
FIRST = re.compile(r'\s*\(?([A-J])(?:[.):,]|\s*$)')

VIDEO_MME = (
  ('video_mme.json',),
  ('video_mme.jsonl',),
  ('videomme.json',),
  ('videomme.jsonl',),
  *sources.parquet('video_mme', 'videomme'),
)
NEXT_QA = (
  ('test.csv', 'map_vid_vidorID.json'),
  ('test.csv',),
  ('val.csv', 'map_vid_vidorID.json'),
  ('val.csv',),
  ('next_qa.csv',),
  *sources.parquet('next_qa', 'MC'),
)
TEMPCOMPASS = (
  ('multi-choice.json',),
  ('questions/multi-choice.json',),
  *sources.parquet('tempcompass', 'multi-choice'),
)

# Task of MVBench (Li et al. 2024) -> folder of its videos in the release.
MVBENCH_FOLDERS = {
  'action_sequence': 'star/Charades_v1_480',
  'action_prediction': 'star/Charades_v1_480',
  'action_antonym': 'ssv2_video',
  'fine_grained_action': 'Moments_in_Time_Raw/videos',
  'unexpected_action': 'FunQA_test/test',
  'object_existence': 'clevrer/video_validation',
  'object_interaction': 'star/Charades_v1_480',
  'object_shuffle': 'perception/videos',
  'moving_direction': 'clevrer/video_validation',
  'action_localization': 'sta/sta_video',
  'scene_transition': 'scene_qa/video',
  'action_count': 'perception/videos',
  'moving_count': 'clevrer/video_validation',
  'moving_attribute': 'clevrer/video_validation',
  'state_change': 'perception/videos',
  'fine_grained_pose': 'nturgbd',
  'character_order': 'perception/videos',
  'egocentric_navigation': 'vlnqa',
  'episodic_reasoning': 'tvqa/frames_fps3_hq',
  'counterfactual_inference': 'clevrer/video_validation',
}
# Tasks about a part of a video; of one of them the videos are folders of pictures.
MVBENCH_SPANS = {
  'action_sequence',
  'action_prediction',
  'object_interaction',
  'action_localization',
  'episodic_reasoning',
}
MVBENCH_FPS = 3.0
MVBENCH = (
  tuple(f'json/{task}.json' for task in MVBENCH_FOLDERS),
  tuple(f'{task}.json' for task in MVBENCH_FOLDERS),
  tuple(f'{task}.parquet' for task in MVBENCH_FOLDERS),
  tuple(f'{task}/*.parquet' for task in MVBENCH_FOLDERS),
)


def choice_item(
  *,
  key: str,
  name: str,
  locate: Locate,
  question: str,
  options: Sequence[str],
  right: int,
  kind: str,
  where: str,
  settings: EvalRun,
  **further: Any,
) -> Item:
  """Returns a question with its options as an item.

  Args:
    options: texts without their letters.
    right: number of the right option.
    further: other fields of the item.
  """
  if not 2 <= len(options) <= len(LETTERS):
    raise DataError(f'{where}: {len(options)} options; expected 2 to {len(LETTERS)}')
  listing = '\n'.join(
    f'{letter}. {option}' for letter, option in zip(LETTERS, options, strict=False)
  )
  template = prompts.load(settings.eval.choice_prompt)
  prompt = prompts.fill(template, options=listing, question=question)
  return Item(
    key=key,
    video=locate(name),
    video_name=name,
    prompts=(prompt,),
    reference=LETTERS[right],
    fields={'kind': kind, 'question': question, 'options': list(options), **further},
    location=where,
  )


def without_letters(options: Sequence[str], where: str) -> list[str]:
  """Returns 'Apples.' of 'A. Apples.', if all options have their letters.

  Raises:
    DataError: they have the letters of other places, so that an answer that is a letter
      means one of two options.
  """
  matches = [_LABEL.match(option) for option in options]
  letters = [match[1] for match in matches if match]
  expected = list(LETTERS[: len(options)])
  if letters == expected:
    return [_LABEL.sub('', option, count=1).strip() for option in options]
  if sorted(letters) == expected:
    raise DataError(
      f'{where}: options have the letters {", ".join(letters)}; list them as '
      f'{", ".join(expected)}'
    )
  return [option.strip() for option in options]


def number_of(letter: str, options: Sequence[str], where: str) -> int:
  """Returns the number of the option that an answer like 'B' or 'B. text' names."""
  match = FIRST.match(letter.strip()) or _LABEL.match(letter)
  number = LETTERS.index(match[1]) if match else len(LETTERS)
  if number >= len(options):
    allowed = ', '.join(LETTERS[: len(options)])
    raise DataError(f'{where}: answer must be one of {allowed}, got {letter!r}')
  return number


def read_video_mme(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of Video-MME: rows of its table, or one row a video.

  Its first release has `choices` and `duration_category` for `options`, `duration`.
  """
  items = []
  for where, row in sources.read_parts(files):
    for inner in row.get('questions') or [{}]:
      if not isinstance(inner, dict):
        raise DataError(f'{where}: questions must hold objects, got {inner!r}')
      whole = {**row, **inner}
      name = sources.identity(whole, ('videoID', 'video_id'), where)
      options = _texts(whole, ('options', 'choices'), where)
      items.append(
        choice_item(
          key=sources.identity(whole, 'question_id', where),
          name=name,
          locate=locate,
          question=sources.text(whole, 'question', where),
          options=without_letters(options, where),
          right=number_of(sources.text(whole, 'answer', where), options, where),
          kind=str(whole.get('duration') or whole.get('duration_category') or 'all'),
          where=where,
          settings=settings,
        )
      )
  check_distinct('question_id', ((one.key, one.location) for one in items))
  return items


def read_mvbench(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of the tasks of MVBench, each a file.

  Where a task is about a part of a video, the item has its `span` in seconds.
  """
  items = []
  for (task, number), (where, row) in _rows_of_tasks(files):
    options = _texts(row, ('candidates',), where)
    answer = sources.text(row, 'answer', where)
    if answer not in options:
      raise DataError(f'{where}: answer {answer!r} is none of candidates {options}')
    video = sources.identity(row, 'video', where)
    folder = MVBENCH_FOLDERS.get(task)
    items.append(
      choice_item(
        key=f'{task}_{number}',
        name=f'{folder}/{video}' if folder else video,
        locate=locate,
        question=sources.text(row, 'question', where),
        options=options,
        right=options.index(answer),
        kind=task.replace('_', ' '),
        where=where,
        settings=settings,
        **_span(row, where, task),
      )
    )
  return items


def _rows_of_tasks(
  files: Sequence[pathlib.Path],
) -> Iterator[tuple[tuple[str, int], sources.Row]]:
  """Yields ((task, number), row) of files named after tasks, or in folders that are."""
  counts: dict[str, int] = {}
  for path in files:
    task = path.stem if path.stem in MVBENCH_FOLDERS else path.parent.name
    if task not in MVBENCH_FOLDERS:
      task = path.stem
    for row in sources.read(path):
      number = counts.get(task, 0)
      counts[task] = number + 1
      yield (task, number), row


def _span(row: Mapping[str, Any], where: str, task: str) -> dict[str, Any]:
  """Returns the part of a video that a row of MVBench is about, in seconds."""
  start, end = row.get('start'), row.get('end')
  if task not in MVBENCH_SPANS or start is None or end is None:
    return {}
  numbers = all(
    isinstance(x, int | float) and not isinstance(x, bool) for x in (start, end)
  )
  if not numbers or not 0 <= start < end < math.inf:
    raise DataError(f'{where}: start and end must be seconds, got {start!r}, {end!r}')
  return {
    'span': [float(start), float(end)],
    'pictures_per_second': MVBENCH_FPS,
  }


def read_next_qa(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of NExT-QA: video, question, a0 to a4, answer, qid, type.

  Its videos are in folders that a second file names, by the names in the table.
  """
  folders: Mapping[str, str] = {}
  if len(files) == 2 and files[1].suffix.lower() == '.json':
    folders = sources.read_object(files[1])
    files = files[:1]
  rows = sources.read_parts(files)
  items = []
  for where, row in rows:
    video = sources.identity(row, 'video', where)
    options = [sources.text(row, f'a{i}', where) for i in range(5)]
    answer = str(row.get('answer'))
    if answer not in ('0', '1', '2', '3', '4'):
      raise DataError(f'{where}: answer must be 0 to 4, got {row.get("answer")!r}')
    qid = sources.identity(row, 'qid', where)
    items.append(
      choice_item(
        key=f'{video}_{qid}',
        name=str(folders.get(video, video)),
        locate=locate,
        question=sources.text(row, 'question', where),
        options=options,
        right=int(answer),
        kind=sources.identity(row, 'type', where),
        where=where,
        settings=settings,
      )
    )
  check_distinct('video and qid', ((one.key, one.location) for one in items))
  return items


def read_tempcompass(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of TempCompass: {video: {aspect: [{question, answer}]}}.

  Mirrors have rows of `video_id`, `dim`, `question`, `answer`. The options are lines
  of the question.
  """
  items = []
  for video, aspect, number, where, row in _tempcompass_rows(files):
    lines = sources.text(row, 'question', where).split('\n')
    options = [line for line in lines if _LABEL.match(line)]
    question = '\n'.join(line for line in lines if line not in options).strip()
    answer = sources.text(row, 'answer', where)
    # Its text says which option it is, also where two have one letter.
    is_option = options.count(answer) == 1
    right = options.index(answer) if is_option else number_of(answer, options, where)
    items.append(
      choice_item(
        key=f'{video}_{aspect}_{number}',
        name=video,
        locate=locate,
        question=question,
        options=[_LABEL.sub('', option, count=1).strip() for option in options],
        right=right,
        kind=aspect,
        where=where,
        settings=settings,
      )
    )
  return items


def _tempcompass_rows(
  files: Sequence[pathlib.Path],
) -> Iterator[tuple[str, str, int, str, Mapping[str, Any]]]:
  """Yields (video, aspect, number, where, row) of either form of TempCompass."""
  if files[0].suffix.lower() != sources.PARQUET:
    for video, aspects in sources.read_object(files[0]).items():
      for aspect, number, row in _entries(aspects, f'{files[0]} {video!r}'):
        yield video, aspect, number, f'{files[0]} {video!r} {aspect} {number}', row
    return
  counts: dict[tuple[str, str], int] = {}
  for where, row in sources.read_parts(files):
    key = sources.identity(row, 'video_id', where), sources.text(row, 'dim', where)
    number = counts.get(key, 0)
    counts[key] = number + 1
    yield *key, number, where, row


def _texts(row: Mapping[str, Any], names: Sequence[str], where: str) -> list[str]:
  """Returns the list of texts that the first of some fields of a row holds."""
  name = next((one for one in names if row.get(one) is not None), names[0])
  value = row.get(name)
  if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
    raise DataError(f'{where}: {name} must be a list of texts, got {value!r}')
  return value


def _entries(aspects: Any, where: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
  """Yields (aspect, number, row) of one video of TempCompass."""
  if not isinstance(aspects, dict):
    raise DataError(f'{where}: must be an object of aspects, got {aspects!r}')
  for aspect, rows in aspects.items():
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise DataError(f'{where}: {aspect} must be a list of objects, got {rows!r}')
    yield from ((aspect, number, row) for number, row in enumerate(rows))
