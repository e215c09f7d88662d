"""Finds the files that a stage reads, and turns their rows into samples."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Container, Iterable

import numpy as np

from vlm_rlaif_jax.data import batches, examples, tokens
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import DataConfig

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


def locate(data: DataConfig, name: str) -> pathlib.Path:
  """Returns the file of a name in `FILES`, or `data.train` if that is set."""
  return pathlib.Path(data.root) / (data.train or FILES[name])


def read(
  data: DataConfig, name: str, skipped: Skipped, held_out: bool | None = None
) -> list[Example]:
  """Returns the samples of one file.

  Args:
    held_out: True: only videos of the held-out share; False: only the others; None:
    all.
  """
  items = []
  for _, parse in examples.examples(locate(data, name)):
    example = skipped.attempt(functools.partial(_parse_checked, parse, data.frames))
    if example is None:
      continue
    is_held_out = examples.is_held_out(example.video, data.holdout)
    if held_out is not None and is_held_out != held_out:
      continue
    items.append(example)
    if data.max_samples and len(items) == data.max_samples:
      break
  return items


def _parse_checked(parse: Callable[[], Example], frames: int) -> Example:
  """Returns a parsed row whose clip is within the sampled frames."""
  return examples.check_clip(parse(), frames)


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


def drop_long_questions(
  items: list[Example], tokenizer: tokens.Tokenizer, data: DataConfig, skipped: Skipped
) -> list[Example]:
  """Returns the samples whose first question fits; others are skipped or an error."""

  def check(item: Example) -> Example:
    try:
      batches.bucket(len(encode_question(tokenizer, item)), data.buckets)
    except ValueError as error:
      raise examples.DataError(f'{item.where}: {error}') from None
    return item

  attempted = (skipped.attempt(functools.partial(check, item)) for item in items)
  return [item for item in attempted if item is not None]


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
  return max(len((answer or '').split()) for _, answer in item.turns)


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
  """Returns the prompt of the first question, or of another text about its video."""
  return tokens.encode_prompt(
    tokenizer, item.question if text is None else text, video=item.video is not None
  )
