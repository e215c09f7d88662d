"""Preference pairs as token sequences that end where a score is read.

    conversation with the answer and its </s>, one space, the reward prompt

The prompt's own closing </s> is dropped, so a sequence ends with the prompt's last
word. An answer that was cut at the length limit has no </s>, as PPO scores it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from vlm_rlaif_jax.data import batches, examples, fields, prompts, tokens
from vlm_rlaif_jax.data.examples import Pair, Skipped
from vlm_rlaif_jax.data.holdout import name_of
from vlm_rlaif_jax.data.prompts import Turns
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.reward import CutAnswers, RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig

PLACEHOLDER = '{factual_prompt}'  # as a list with a lead, in the reference
NARRATIVE = '{narrative}'  # a caption a line, as the judge reads it
LEAD = 'What is known about the video:\n'


def reward_prompt(settings: RewardPrompt, captions: Iterable[str] = ()) -> str:
  """Returns the turn after an answer, with its placeholder filled (register B02)."""
  return filled_prompt(prompts.load(settings.prompt), settings, captions)


def filled_prompt(
  text: str, settings: RewardPrompt, captions: Iterable[str] = ()
) -> str:
  """Returns a text as `reward_prompt` returns that of a prompt file."""
  if settings.placeholder == 'literal':
    return text
  listing = lines = ''
  if settings.placeholder == 'captions':
    captions = list(captions)
    listing = LEAD + ''.join(f'  - {caption}\n' for caption in captions)
    lines = ''.join(f'{caption}\n' for caption in captions)
  return text.replace(PLACEHOLDER, listing).replace(NARRATIVE, lines)


def prompt_ids(tokenizer: tokens.Tokenizer, settings: RewardPrompt) -> np.ndarray:
  """Returns the ids that PPO appends to an answer, `int32[S]`."""
  return suffix_ids(tokenizer, reward_prompt(settings))


def suffix_ids(tokenizer: tokens.Tokenizer, text: str) -> np.ndarray:
  """Returns the ids of a reward prompt as they follow an answer, `int32[S]`."""
  return np.asarray(tokenizer.pieces(f' {text}'), np.int32)


@dataclasses.dataclass(frozen=True)
class PairSample:
  """A pair as two sequences that share a video. `length`: the bucket of the longer."""

  pair: Pair
  ids: tuple[np.ndarray, np.ndarray]
  frames: int
  length: int

  @property
  def shape(self) -> tuple[int, int]:
    """Returns what decides the shapes of its batch."""
    return self.frames, self.length


def place_of(pair: Pair) -> str:
  """Returns the name of the video of a pair, that of all its parts and copies.

  Copies have one where the stage has compared files (`Example.place`).
  """
  example = pair.example
  return example.place or (name_of(example.video) if example.video else '')


def encode_pair(
  pair: Pair,
  tokenizer: tokens.Tokenizer,
  settings: RewardPrompt,
  data: DataConfig,
  cut_answers: CutAnswers = 'open',
) -> PairSample:
  """Returns both answers of a pair after their conversation, as token ids."""
  turns = pair.example.turns
  narrative = fields.present(pair.example.record).get('narrative', '')
  if settings.placeholder == 'captions' and not narrative.strip():
    raise ValueError(
      'no narrative, which config.scoring.placeholder=captions reads beside an answer; '
      'stage label writes it'
    )
  suffix = suffix_ids(tokenizer, reward_prompt(settings, narrative.splitlines()))
  has_video = pair.example.video is not None
  ids = []
  for answer, stopped in zip(pair.answers, pair.stopped, strict=True):
    answered = (*turns[:-1], (turns[-1][0], answer))
    closed = stopped or cut_answers != 'open'
    ids.append(scored_ids(tokenizer, answered, suffix, closed, has_video=has_video))
  video = pair.example.video
  return PairSample(
    pair,
    (ids[0], ids[1]),
    video.frames(data.frames) if video else data.frames,
    batches.bucket(max(map(len, ids)), data.buckets),
  )


def scored_ids(
  tokenizer: tokens.Tokenizer,
  turns: Turns,
  suffix: Sequence[int] | np.ndarray,
  closed: bool,
  *,
  has_video: bool = True,
) -> np.ndarray:
  """Returns an answered conversation and the reward prompt after it, `int32[T]`.

  Args:
    suffix: ids of the reward prompt.
    closed: whether the last answer has an end of sequence.
  """
  conversation = prompts.render(turns, video=has_video)
  if not closed:
    conversation = conversation.removesuffix(prompts.EOS)
  return np.asarray([*tokenizer.encode(conversation), *suffix], np.int32)


def encode_pairs(
  pairs: Iterable[Pair],
  tokenizer: tokens.Tokenizer,
  settings: RewardPrompt,
  data: DataConfig,
  skipped: Skipped,
  drop_long: bool,
  cut_answers: CutAnswers = 'open',
) -> list[PairSample]:
  """Returns the pairs that say something and fit.

  One that is too long is bad, or dropped (B39). Two identical answers say nothing, and
  are left out with the reason; so are cut answers if `cut_answers` says so.
  """
  samples = []
  for pair in pairs:
    where = pair.example.where
    if cut_answers == 'drop' and not all(pair.stopped):
      skipped.reasons.append(f'{where}: an answer is cut (reward.cut_answers=drop)')
      continue
    try:
      sample = encode_pair(pair, tokenizer, settings, data, cut_answers)
    except ValueError as error:
      if drop_long and isinstance(error, batches.LengthError):
        skipped.reasons.append(f'{where}: {error}')
        continue
      skipped.attempt(functools.partial(_fail, pair, error))
      continue
    if np.array_equal(*sample.ids):
      skipped.reasons.append(f'{where}: two identical answers')
      continue
    samples.append(sample)
  return samples


def _fail(pair: Pair, error: ValueError) -> None:
  """Raises DataError with the file and row of a pair."""
  raise examples.DataError(f'{pair.example.where}: {error}')


def collate(samples: list[PairSample | None], length: int) -> dict[str, np.ndarray]:
  """Returns left-padded ids `int32[B, 2, T]`, valid, preferred `int32[B]`, weight."""
  blank = np.zeros(0, np.int32)
  ids = [
    tokens.pad(sample.ids if sample else (blank, blank), length, 'left', PAD)
    for sample in samples
  ]
  stacked = np.stack(ids)
  return {
    'ids': stacked,
    'valid': stacked != PAD,
    'preferred': np.asarray([s.pair.preferred if s else 0 for s in samples], np.int32),
    'weight': np.asarray([s is not None for s in samples], np.float32),
  }
