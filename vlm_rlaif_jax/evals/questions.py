"""Questions of the benchmark files, or about the held-out videos of a training file."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from vlm_rlaif_jax.data import (
  batches,
  examples,
  fields,
  holdout,
  readers,
  tokens,
  unread_fields,
)
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.prompts import unmarked
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.eval import EvalConfig
from vlm_rlaif_jax.settings.sections import DataConfig


@dataclasses.dataclass(frozen=True)
class Question:
  """A question of an evaluation.

  Attributes:
    row: what is written beside the prediction: question_id, question, answer, ...
    video: what the question is about.
    location: file and row, for messages.
  """

  row: dict[str, Any]
  video: Video
  location: str

  @property
  def text(self) -> str:
    return self.row['question']


def read_questions(
  data: DataConfig,
  task: str,
  skipped: Skipped,
  settings: EvalConfig = EvalConfig(),  # noqa: B008 - frozen
) -> list[Question]:
  """Returns the questions of a task about the videos of a split.

  They are those of its benchmark file, or, where `data.train` names a file of the
  user's, its questions about held-out videos, which are not split further.

  Args:
    task: 'qa' or 'describe'; a training file has no descriptions.
  """
  if data.train:
    if settings.split == 'dev':
      raise examples.DataError(
        f'config.eval.split=dev: the held-out videos of {data.train} are not split; '
        'choose settings on a file of its own'
      )
    return _held_out_questions(data, skipped) if task == 'qa' else []
  path = readers.locate(data, task)
  rows = examples.read_rows(path)

  def parse(row: Callable[[], dict], location: str) -> Question:
    question = benchmark_question(row(), location, task, data.ignore_fields)
    examples.check_clip(question.video, data.frames, location)
    return question

  attempted = [
    skipped.attempt(functools.partial(parse, row, location)) for location, row in rows
  ]
  questions = [question for question in attempted if question is not None]
  examples.check_distinct(
    'question_id', ((one.row['question_id'], one.location) for one in questions)
  )
  questions = [
    one for one in questions if split_of(one, settings.dev_share) == settings.split
  ]
  if settings.clips:
    names = list(dict.fromkeys(one.row['video_name'] for one in questions))
    used = set(names[: settings.clips])
    questions = [one for one in questions if one.row['video_name'] in used]
  bad = readers.missing((one.video for one in questions), readers.data_files(data))
  present = drop_unreadable(questions, bad, skipped)
  left_out = sum(one is None for one in attempted) + len(questions) - len(present)
  skipped.files[path.name] = {'rows': len(rows), 'held_out': 0, 'bad': left_out}
  skipped.say(
    f'  {path.name}: {len(rows)} questions'
    + (f'; {left_out} bad, left out' if left_out else '')
  )
  return present


def split_of(question: Question, dev_share: float) -> Literal['test', 'dev']:
  """Returns the split of a question, by the name of its video alone."""
  name = holdout.name_of(Video((question.row['video_name'],)))
  return 'dev' if holdout.in_share(name, dev_share, 'dev') else 'test'


def _held_out_questions(data: DataConfig, skipped: Skipped) -> list[Question]:
  """Returns every question about the held-out videos of `data.train`.

  `data.max_samples` is of what is learned: runs that learn from more and from less are
  compared on the same questions.
  """
  data = dataclasses.replace(data, max_samples=0)
  return [
    Question(
      {
        'question_id': f'{item.key}_{number}',
        # The same of all its parts and copies: intervals resample whole videos.
        'video_name': item.place,
        'images': list(item.video.paths),
        **({'clip': list(item.video.clip)} if item.video.clip else {}),
        'question': question,
        'answer': answer,
        'kind': 'held out',
      },
      item.video,
      item.where,
    )
    for item in readers.read(data, 'qa', skipped, held_out=True)
    if item.video
    for number, (question, answer) in enumerate(item.turns)
  ]


def benchmark_question(
  row: dict[str, Any], location: str, task: str = 'qa', ignored: Collection[str] = ()
) -> Question:
  """Returns the question of a row of a benchmark file.

  Args:
    task: 'qa', whose answers are compared, or 'describe'.
    ignored: `data.ignore_fields`.

  Raises:
    DataError: a field is missing or of another type, or could say what is to be seen
      and is not read.
  """
  row = fields.present(row)
  for field in ('video_name', 'question_id', 'question', 'answer'):
    if not isinstance(row.get(field), str):
      raise examples.DataError(f'{location}: {field} must be a str')
    fields.check_text(row[field], f'{location}: {field}')
  if not isinstance(row.get('kind', ''), str):
    raise examples.DataError(f'{location}: kind must be a str, got {row["kind"]!r}')
  if fields.is_blank(unmarked(row['question'])):
    raise examples.DataError(f'{location}: the question is blank')
  if task == 'qa' and fields.is_blank(row['answer']):
    raise examples.DataError(f'{location}: the answer is blank, and it is compared')
  named = row
  if not any(row.get(name) for name in fields.VISUAL):
    named = {**row, 'video': row['video_name']}
  video = fields.video_of(named, location)
  assert video is not None
  fields.check_marks([(f'{location}: question', row['question'])], named, location)
  unread_fields.check_unread(row, fields.BENCHMARK, video, location, ignored)
  return Question(row, video, location)


def drop_unreadable(
  questions: Sequence[Question], bad: Mapping[Video, str], skipped: Skipped
) -> list[Question]:
  """Returns the questions whose video can be read; others are skipped or an error.

  Args:
    bad: reasons why videos cannot be read.
    skipped: decides which of both, and keeps the reasons.
  """

  def check(question: Question) -> Question:
    if question.video in bad:
      raise examples.DataError(f'{question.location}: {bad[question.video]}')
    return question

  checked = (skipped.attempt(functools.partial(check, one)) for one in questions)
  return [question for question in checked if question is not None]


def drop_long(
  questions: Sequence[Question],
  tokenizer: Tokenizer,
  buckets: Sequence[int],
  template: str,
  skipped: Skipped,
  room: float = math.inf,
) -> list[Question]:
  """Returns the questions whose text fits; others are skipped or an error.

  Args:
    room: positions of the network that video and answer leave to a padded prompt.
  """

  def check(question: Question) -> Question:
    try:
      prompt = tokens.encode_prompt(tokenizer, question.text, template)
      length = batches.bucket(len(prompt), buckets)
      if length > room:
        raise ValueError(
          f'the prompt, in a bucket of {length}, has {room} positions of the network '
          'beside the video and the longest answer (model.llama.max_positions); '
          'shorten it, lower the eval.*_tokens of the answer, or add a bucket'
        )
    except ValueError as error:
      raise examples.DataError(f'{question.location}: {error}') from None
    return question

  checked = (skipped.attempt(functools.partial(check, one)) for one in questions)
  return [question for question in checked if question is not None]


def check_any(
  questions: Sequence[Question], data: DataConfig, settings: EvalConfig
) -> None:
  """Refuses to evaluate without a question."""
  if not questions:
    share = f' of split {settings.split} (eval.dev_share={settings.dev_share})'
    if data.train:
      share = f' (data.holdout={data.holdout} of the videos)'
    raise examples.DataError(
      f'{readers.locate(data, "qa")}: no usable question about a held-out video{share}'
    )
