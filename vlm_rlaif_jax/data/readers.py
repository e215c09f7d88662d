"""Which files a stage reads, and their samples, tokenized."""

import dataclasses
import pathlib
from collections.abc import Container, Iterable

import numpy as np

from vlm_rlaif_jax.data import batches, examples, tokens
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.video import Video
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
  return pathlib.Path(data.root) / (data.train or FILES[name])


def read(
  data: DataConfig, name: str, skipped: Skipped, held_out: bool | None = None
) -> list[Example]:
  """The samples of one file.

  Args:
    held_out: True: only videos of the held-out share; False: only the others; None:
    all.
  """
  kept = []
  for _, parse in examples.examples(locate(data, name)):
    check = lambda parse=parse: examples.check_clip(parse(), data.frames)
    example = skipped.attempt(check)
    if example is None:
      continue
    aside = examples.is_held_out(example.video, data.holdout)
    if held_out is not None and aside != held_out:
      continue
    kept.append(example)
    if data.max_samples and len(kept) == data.max_samples:
      break
  return kept


def drop_unreadable(
  items: list[Example], bad: dict[Video, str], skipped: Skipped
) -> list[Example]:
  """Leaves out the samples whose video cannot be read, or stops, as the policy says."""

  def check(item: Example) -> Example:
    if item.video in bad:
      raise examples.DataError(f'{item.where}: {bad[item.video]}')
    return item

  attempted = (skipped.attempt(lambda item=item: check(item)) for item in items)
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
    return self.frames, self.length


def tokenize_examples(
  items: Iterable[Example],
  tokenizer: tokens.Tokenizer,
  data: DataConfig,
  skipped: Skipped,
) -> list[Sample]:
  """Conversations as training samples; too long ones are bad samples."""

  def one(item: Example) -> Sample:
    try:
      encoded = tokens.encode_conversation(
        tokenizer, item.turns, video=item.video is not None
      )
      length = batches.bucket(len(encoded.ids), data.buckets)
    except ValueError as error:
      raise examples.DataError(f'{item.where}: {error}') from None
    frames = item.video.frames(data.frames) if item.video else data.frames
    return Sample(item, encoded, frames, length)

  attempted = (skipped.attempt(lambda item=item: one(item)) for item in items)
  return [sample for sample in attempted if sample is not None]


def check_joined(items: Iterable[Example], truth: Container[str] | None) -> None:
  """Refuses ids that are repeated where a truth is looked up by id."""
  known = () if truth is None else truth
  examples.check_distinct(
    'id', ((item.key, item.where) for item in items if item.key in known)
  )


def drop_long_questions(
  items: list[Example], tokenizer: tokens.Tokenizer, data: DataConfig, skipped: Skipped
) -> list[Example]:
  """Leaves out the samples whose first question fits no bucket, or stops."""

  def check(item: Example) -> Example:
    try:
      batches.bucket(len(encode_question(tokenizer, item)), data.buckets)
    except ValueError as error:
      raise examples.DataError(f'{item.where}: {error}') from None
    return item

  attempted = (skipped.attempt(lambda item=item: check(item)) for item in items)
  return [item for item in attempted if item is not None]


def collate(samples: list[Sample | None], length: int) -> dict[str, np.ndarray]:
  """Right-padded `ids int32[B, T]` and `target bool[B, T]`; None gives a blank row."""
  empty = tokens.Encoded(np.zeros(0, np.int32), np.zeros(0, bool))
  encoded = [empty if sample is None else sample.encoded for sample in samples]
  return {
    'ids': tokens.pad([e.ids for e in encoded], length, 'right'),
    'target': tokens.pad([e.target for e in encoded], length, 'right', False),
  }


def answer_words(item: Example) -> int:
  """Words of the longest answer: what tells short samples from long ones."""
  return max(len((answer or '').split()) for _, answer in item.turns)


def collate_prompts(
  prompts_ids: list[np.ndarray], length: int
) -> dict[str, np.ndarray]:
  """Left-padded `ids int32[B, T]` and `valid bool[B, T]`."""
  ids = tokens.pad(prompts_ids, length, 'left')
  valid = tokens.pad(
    [np.ones(len(p), bool) for p in prompts_ids], length, 'left', False
  )
  return {'ids': ids, 'valid': valid}


def encode_question(
  tokenizer: tokens.Tokenizer, item: Example, text: str | None = None
) -> np.ndarray:
  """The prompt of an example's first question, or of another text about its video."""
  return tokens.encode_prompt(
    tokenizer, item.question if text is None else text, video=item.video is not None
  )
