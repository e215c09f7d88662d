"""Questions of the benchmark files, or about the held-out videos of a training file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlm_rlaif_jax.data import batches, examples, readers, tokens
from vlm_rlaif_jax.data.examples import Skipped
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
  questions = []
  for location, row in examples.read_rows(readers.locate(data, task)):
    question = skipped.attempt(
      lambda row=row, location=location: benchmark_question(row(), location)
    )
    if question is not None:
      questions.append(question)
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
  return questions


def split_of(question: Question, dev_share: float) -> Literal['test', 'dev']:
  """Returns the split of a question, by the name of its video alone."""
  video = Video((question.row['video_name'],))
  return 'dev' if examples.is_held_out(video, dev_share, 'dev') else 'test'


def _held_out_questions(data: DataConfig, skipped: Skipped) -> list[Question]:
  """Returns every question about the held-out videos of `data.train`."""
  return [
    Question(
      {
        'question_id': f'{item.key}_{number}',
        'video_name': item.video.paths[0],
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


def benchmark_question(row: dict[str, Any], location: str) -> Question:
  """Returns the question of a row of a benchmark file.

  Raises:
    DataError: a field is missing or of another type.
  """
  for field in ('video_name', 'question_id', 'question', 'answer'):
    if not isinstance(row.get(field), str):
      raise examples.DataError(f'{location}: {field} must be a str')
  if not isinstance(row.get('kind', ''), str):
    raise examples.DataError(f'{location}: kind must be a str, got {row["kind"]!r}')
  paths = row.get('images')
  named = {'video': row['video_name']} if paths is None else {'images': paths}
  video = examples.video_of(named, location)
  assert video is not None
  return Question(row, video, location)


def drop_unusable(
  questions: Sequence[Question],
  tokenizer: Tokenizer,
  buckets: Sequence[int],
  template: str,
  bad: Mapping[Video, str],
  skipped: Skipped,
) -> list[Question]:
  """Leaves out questions without a readable video or with a too long text, or stops.

  Args:
    bad: reasons why videos cannot be read.
    skipped: decides which of both, and keeps the reasons.
  """

  def check(question: Question) -> Question:
    if question.video in bad:
      raise examples.DataError(f'{question.location}: {bad[question.video]}')
    prompt = tokens.encode_prompt(tokenizer, question.text, template)
    try:
      batches.bucket(len(prompt), buckets)
    except ValueError as error:
      raise examples.DataError(f'{question.location}: {error}') from None
    return question

  checked = (skipped.attempt(lambda one=one: check(one)) for one in questions)
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
