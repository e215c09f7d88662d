"""Finds the files that a stage reads, and turns their rows into samples."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Container, Iterable
from typing import TypeVar

import numpy as np

from vlm_rlaif_jax.data import (
  batches,
  examples,
  fields,
  tokens,
  unread_fields,
  words,
)
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.files import DataFiles
from vlm_rlaif_jax.data.holdout import Holdout
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import DataConfig

T = TypeVar('T')

FILES = {  # below data.root, where data.train does not name one file for everything
  'short': 'instructions/SFT_short.json',
  'long': 'instructions/SFT_long.json',
  'init': 'instructions/PPO_init.json',
  'preference': 'instructions/preference_prompts.json',
  'rl': 'instructions/RL_data.json',
  'qa': 'eval/qa.json',
  'describe': 'eval/describe.json',
  'truth': 'truth.json',
}
ANSWERED = ('short', 'long', 'init', 'qa')  # where answers are learned or compared


def locate(data: DataConfig, name: str) -> pathlib.Path:
  """Returns the file of a name in `FILES`, or `data.train` if that is set."""
  return pathlib.Path(data.root) / (data.train or FILES[name])


def read(
  data: DataConfig,
  name: str,
  skipped: Skipped,
  held_out: bool | None = None,
  *,
  splits: bool = False,
) -> list[Example]:
  """Returns the samples of one file, and says how many there are.

  Rows, and the presence of the files that they name, are checked here, before anything
  is decoded; so are those of held-out videos, which a later stage will need.

  Args:
    held_out: True: only videos of the held-out share; False: only the others; None:
      all.
    splits: whether the caller divides all samples by their `held_out`.
  """
  path, files = locate(data, name), data_files(data)
  rows = examples.read_rows(path)
  share = data.holdout if splits or held_out is not None else 0.0
  holdout = Holdout(videos_of(rows), share, files)
  items: list[Example] = []
  total = size = 0
  for _, parse in examples.parse_rows(
    rows, answered=name in ANSWERED, ignored=data.ignore_fields
  ):
    total += 1
    item = skipped.attempt(functools.partial(_parse_checked, parse, data.frames))
    if item is None:
      continue
    item = dataclasses.replace(
      item, held_out=item.video in holdout, place=holdout.name(item.video)
    )
    items.append(item)
    size += held_out is None or item.held_out == held_out
    if data.max_samples and size == data.max_samples:
      break
  present = drop_missing(items, files, skipped)
  _report(path, total, present, skipped, None if splits else holdout, share)
  return [item for item in present if held_out is None or item.held_out == held_out]


def data_files(data: DataConfig) -> DataFiles:
  """Returns what looks at the files of the data."""
  return DataFiles(data.root, data.workers)


def videos_of(rows: Iterable[tuple[str, Callable[[], dict]]]) -> list[Video]:
  """Returns the videos that rows name, also those of rows that are bad.

  So all stages know the same videos, whatever each demands of a row.
  """
  videos: dict[Video, None] = {}
  for where, row in rows:
    with contextlib.suppress(examples.DataError):
      video = fields.video_of(row(), where)
      if video is not None:
        videos[Video(video.paths)] = None
  return list(videos)


def _parse_checked(parse: Callable[[], Example], frames: int) -> Example:
  """Returns a parsed row whose clip is within the sampled frames."""
  item = parse()
  examples.check_clip(item.video, frames, item.where)
  return item


def _report(
  path: pathlib.Path,
  total: int,
  items: list[Example],
  skipped: Skipped,
  holdout: Holdout | None,
  share: float,
) -> None:
  """Says and keeps how many rows a file has, and what becomes of them.

  Args:
    holdout: None: the caller says what it holds out.
  """
  held_out = sum(item.held_out for item in items) if holdout else 0
  bad, no_video = total - len(items), sum(item.video is None for item in items)
  skipped.files[path.name] = {'rows': total, 'held_out': held_out, 'bad': bad}
  parts = [f'{total} rows']
  if holdout and held_out:
    parts += [f'{held_out} held out, about {holdout.counts()} (data.holdout={share:g})']
  elif holdout and holdout.all_in_share:
    parts += [f'none held out: data.holdout={share:g} would leave no video to train on']
  elif holdout:
    parts += ['none held out']
  parts += [f'{no_video} without a video'] if no_video else []
  parts += [f'{bad} bad, left out'] if bad else []
  names = {
    name for item in items for name in unread_fields.unread(item.record, fields.ROW)
  }
  parts += [f'fields that are not read: {", ".join(sorted(names))}'] if names else []
  skipped.say(f'  {path.name}: {"; ".join(parts)}')


def drop_missing(
  items: list[T],
  files: DataFiles,
  skipped: Skipped,
  example_of: Callable[[T], Example] | None = None,
) -> list[T]:
  """Returns the items whose files are there; others are skipped or an error.

  Args:
    example_of: returns the example of an item; None: it is one.
  """
  samples: list = [example_of(item) for item in items] if example_of else items
  bad = missing((sample.video for sample in samples if sample.video), files)
  return [
    item
    for item, sample in zip(items, samples, strict=True)
    if is_readable(sample, bad, skipped)
  ]


def missing(videos: Iterable[Video], files: DataFiles) -> dict[Video, str]:
  """Returns the videos that lack a file, and why."""
  distinct = dict.fromkeys(videos)
  problems = files.problems(path for video in distinct for path in video.paths)
  reasons = {
    video: next((problems[path] for path in video.paths if path in problems), '')
    for video in (distinct if problems else ())
  }
  return {video: reason for video, reason in reasons.items() if reason}


def is_readable(item: Example, bad: dict[Video, str], skipped: Skipped) -> bool:
  """Returns whether a sample's video can be read; skips it or raises DataError."""
  return bool(drop_unreadable([item], bad, skipped))


def drop_unreadable(
  items: list[Example], bad: dict[Video, str], skipped: Skipped
) -> list[Example]:
  """Returns the samples whose video can be read; others are skipped or an error."""

  def check(item: Example) -> Example:
    if item.video in bad:
      raise examples.DataError(f'{item.where}: {bad[item.video]}')
    return item

  attempted = (skipped.attempt(functools.partial(check, item)) for item in items)
  return [item for item in attempted if item is not None]


@dataclasses.dataclass(frozen=True)
class Sample:
  """A tokenized conversation. `frames`: of its video, after the cut to its clip."""

  example: Example
  encoded: tokens.Encoded
  frames: int
  length: int  # the bucket of its text

  @property
  def shape(self) -> tuple[int, int]:
    """Returns what decides the shapes of its batch."""
    return self.frames, self.length


def tokenize_examples(
  items: Iterable[Example],
  tokenizer: tokens.Tokenizer,
  data: DataConfig,
  skipped: Skipped,
) -> list[Sample]:
  """Returns conversations as training samples; too long ones are bad samples."""

  def tokenize(item: Example) -> Sample:
    try:
      tokenizer.check_plain(text or '' for turn in item.turns for text in turn)
      encoded = tokens.encode_conversation(
        tokenizer, item.turns, video=item.video is not None
      )
      length = batches.bucket(len(encoded.ids), data.buckets)
    except ValueError as error:
      raise examples.DataError(f'{item.where}: {error}') from None
    frames = item.video.frames(data.frames) if item.video else data.frames
    return Sample(item, encoded, frames, length)

  attempted = (skipped.attempt(functools.partial(tokenize, item)) for item in items)
  return [sample for sample in attempted if sample is not None]


def check_joined(items: Iterable[Example], truth: Container[str] | None) -> None:
  """Raises DataError for repeated ids where the truth is looked up by id."""
  ids = () if truth is None else truth
  examples.check_distinct(
    'id', ((item.key, item.where) for item in items if item.key in ids)
  )


def collate(samples: list[Sample | None], length: int) -> dict[str, np.ndarray]:
  """Returns right-padded ids `int32[B, T]` and target `bool[B, T]`; None is blank."""
  empty = tokens.Encoded(np.zeros(0, np.int32), np.zeros(0, bool))
  encoded = [empty if sample is None else sample.encoded for sample in samples]
  return {
    'ids': tokens.pad([e.ids for e in encoded], length, 'right', PAD),
    'target': tokens.pad([e.target for e in encoded], length, 'right', False),
  }


def answer_words(item: Example) -> int:
  """Returns the words of the longest answer, by which samples are short or long."""
  return max(words.count(answer or '') for _, answer in item.turns)


def collate_prompts(
  prompts_ids: list[np.ndarray], length: int
) -> dict[str, np.ndarray]:
  """Returns left-padded ids `int32[B, T]` and valid `bool[B, T]`."""
  ids = tokens.pad(prompts_ids, length, 'left', PAD)
  valid = tokens.pad(
    [np.ones(len(p), bool) for p in prompts_ids], length, 'left', False
  )
  return {'ids': ids, 'valid': valid}


def encode_question(
  tokenizer: tokens.Tokenizer, item: Example, text: str | None = None
) -> np.ndarray:
  """Returns the prompt of the first question, or of another text about its video.

  Raises:
    UserError: the question has a token that stands for no text. What a model wrote, as
      another text may contain, is read as it is.
  """
  if text is None:
    text = item.question
    tokenizer.check_plain([text])
  return tokens.encode_prompt(tokenizer, text, video=item.video is not None)
