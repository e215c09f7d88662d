"""Multiple choice without a judge: by the odds of the letters, and by generation.

accuracy             the letter with the highest log-probability as the next token
generated_accuracy   the letter that the model writes; an answer that names none is
                     wrong, and `parsed` is the share that names one
chance               what guessing gives
task_mean            of MVBench: the mean over its tasks, which is its headline
"""

import math
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.examples import DataError, check_distinct
from vlm_rlaif_jax.evals.benchmarks import choice_files, sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, Locate, Outputs, Tools
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.settings.eval import EvalRun

LETTERS = 'ABCDEFGHIJ'
_LABEL = re.compile(r'\s*\(?([A-J])[.):]\s*')
_FIRST = re.compile(r'\s*\(?([A-J])(?:[.):,]|\s*$)')
_NAMED = re.compile(
  r'\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-J])\b(?!\s+[a-z])'
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
  prompt = template.replace('{options}', listing).replace('{question}', question)
  return Item(
    key=key,
    video=locate(name),
    video_name=name,
    prompts=(prompt,),
    reference=LETTERS[right],
    fields={'kind': kind, 'question': question, 'options': list(options), **further},
    location=where,
  )


def without_letter(option: str) -> str:
  """Returns 'Apples.' of 'A. Apples.'."""
  return _LABEL.sub('', option, count=1).strip()


def number_of(letter: str, options: Sequence[str], where: str) -> int:
  """Returns the number of the option that an answer like 'B' or 'B. text' names."""
  match = _FIRST.match(letter.strip()) or _LABEL.match(letter)
  number = LETTERS.index(match[1]) if match else len(LETTERS)
  if number >= len(options):
    allowed = ', '.join(LETTERS[: len(options)])
    raise DataError(f'{where}: answer must be one of {allowed}, got {letter!r}')
  return number


def read_video_mme(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of Video-MME: rows of its table, or one row a video."""
  items = []
  for where, row in sources.read(files[0]):
    for inner in row.get('questions') or [{}]:
      if not isinstance(inner, dict):
        raise DataError(f'{where}: questions must hold objects, got {inner!r}')
      whole = {**row, **inner}
      name = sources.identity(whole, ('videoID', 'video_id'), where)
      options = _texts(whole, 'options', where)
      items.append(
        choice_item(
          key=sources.identity(whole, 'question_id', where),
          name=name,
          locate=locate,
          question=sources.text(whole, 'question', where),
          options=[without_letter(option) for option in options],
          right=number_of(sources.text(whole, 'answer', where), options, where),
          kind=str(whole.get('duration', 'all')),
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
  for path in files:
    task = path.stem
    for number, (where, row) in enumerate(sources.read(path)):
      options = _texts(row, 'candidates', where)
      answer = sources.text(row, 'answer', where)
      if answer not in options:
        raise DataError(f'{where}: answer {answer!r} is none of candidates {options}')
      video = sources.identity(row, 'video', where)
      folder = choice_files.MVBENCH_FOLDERS.get(task)
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


def _span(row: Mapping[str, Any], where: str, task: str) -> dict[str, Any]:
  """Returns the part of a video that a row of MVBench is about, in seconds."""
  if task not in choice_files.MVBENCH_SPANS or not {'start', 'end'} <= row.keys():
    return {}
  start, end = row['start'], row['end']
  numbers = all(
    isinstance(x, int | float) and not isinstance(x, bool) for x in (start, end)
  )
  if not numbers or not 0 <= start < end < math.inf:
    raise DataError(f'{where}: start and end must be seconds, got {start!r}, {end!r}')
  return {
    'span': [float(start), float(end)],
    'pictures_per_second': choice_files.MVBENCH_FPS,
  }


def read_next_qa(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of NExT-QA: video, question, a0 to a4, answer, qid, type.

  Its videos are in folders that a second file names, by the names in the table.
  """
  folders: Mapping[str, str] = {}
  if len(files) == 2:
    folders = choice_files.read_object(files[1])
  items = []
  for where, row in sources.read(files[0]):
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

  The options are lines of the question.
  """
  items = []
  for video, aspects in choice_files.read_object(files[0]).items():
    for aspect, number, row in choice_files.entries(aspects, f'{files[0]} {video!r}'):
      where = f'{files[0]} {video!r} {aspect} {number}'
      lines = sources.text(row, 'question', where).split('\n')
      options = [line for line in lines if _LABEL.match(line)]
      question = '\n'.join(line for line in lines if line not in options).strip()
      answer = sources.text(row, 'answer', where)
      items.append(
        choice_item(
          key=f'{video}_{aspect}_{number}',
          name=video,
          locate=locate,
          question=question,
          options=[without_letter(option) for option in options],
          right=number_of(answer, options, where),
          kind=aspect,
          where=where,
          settings=settings,
        )
      )
  return items


def _texts(row: Mapping[str, Any], name: str, where: str) -> list[str]:
  """Returns a list of texts of a row; a table in JSON may hold it as a string."""
  value = row.get(name)
  if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
    raise DataError(f'{where}: {name} must be a list of texts, got {value!r}')
  return value


# --------------------------------------------------------------------------- scores


def chosen_letter(answer: str, options: Sequence[str]) -> str:
  """Returns the letter that an answer names; '' if none, or if it cannot be told.

  'B', 'B.', '(B) text', 'the answer is B', or the text of one option alone.
  """
  allowed = LETTERS[: len(options)]
  match = _FIRST.match(answer) or _NAMED.search(answer)
  if match:
    return match[1] if match[1] in allowed else ''
  text = f' {normalize(answer)} '
  matches = [
    letter
    for letter, option in zip(allowed, options, strict=True)
    if f' {normalize(option)} ' in text
  ]
  return matches[0] if len(matches) == 1 else ''


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns right choices by the letters' odds and by generation, and what is chance.

  An option that ties with the right one counts as chosen.
  """
  del tools
  rights = [LETTERS.index(item.reference) for item in items]
  options = [item.fields['options'] for item in items]
  letters = [
    chosen_letter(texts[0], names)
    for texts, names in zip(outputs.predictions, options, strict=True)
  ]
  values: dict[str, Sequence[float]] = {}
  if outputs.options:
    values['accuracy'] = [
      float(all(odds[right] > o for i, o in enumerate(odds) if i != right))
      for odds, right in zip(outputs.options, rights, strict=True)
    ]
  values['generated_accuracy'] = [
    float(letter == item.reference) for letter, item in zip(letters, items, strict=True)
  ]
  values['parsed'] = [float(letter != '') for letter in letters]
  values['chance'] = [1 / len(names) for names in options]
  return values


def score_mvbench(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns `score`, and the mean over tasks by the letters' odds."""
  values = dict(score(items, outputs, tools))
  counts = Counter(item.fields['kind'] for item in items)
  if 'accuracy' in values:
    weights = [len(items) / len(counts) / counts[one.fields['kind']] for one in items]
    values['task_mean'] = np.multiply(values['accuracy'], weights).tolist()
  return values


_HEADLINE = ('accuracy', 'generated_accuracy', 'chance')

ALL = (
  Benchmark(
    name='video_mme',
    family='choice',
    dataset='video_mme',
    files=choice_files.VIDEO_MME,
    read=read_video_mme,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
    test_items=2700,
    test_videos=900,
  ),
  Benchmark(
    name='mvbench',
    family='choice',
    dataset='mvbench',
    files=choice_files.MVBENCH,
    needs_all_files=False,
    read=read_mvbench,
    score=score_mvbench,
    tokens='answer_tokens',
    weighted=('task_mean',),
    headline=('task_mean', *_HEADLINE),
    test_items=4000,
  ),
  Benchmark(
    name='next_qa',
    family='choice',
    dataset='next_qa',
    files=choice_files.NEXT_QA,
    read=read_next_qa,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
    test_items=8564,
    test_videos=1000,
  ),
  Benchmark(
    name='tempcompass',
    family='choice',
    dataset='tempcompass',
    files=choice_files.TEMPCOMPASS,
    read=read_tempcompass,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
    test_items=1580,
    test_videos=410,
  ),
)
