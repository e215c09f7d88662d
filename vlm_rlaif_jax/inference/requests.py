"""Checks what a caller asks of a network, before anything is computed."""

import math
import pathlib
import warnings

import numpy as np
from numpy.typing import ArrayLike

from vlm_rlaif_jax.data import chat_templates, fields
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD, VIDEO


class LoadError(UserError):
  """A request that a checkpoint cannot fulfill."""


MOST_SEED = 2**32 - 1  # JAX takes 32 bits of a seed; a larger one would be another
COLDEST = 1e-6  # temperature by which logits can be divided; 0 takes the largest


def check_load(bits: int, frames: int) -> None:
  """Raises LoadError for bits of weights, or a number of frames, that there are not."""
  if bits not in (4, 16):
    raise LoadError(f'bits: choose 4 or 16; got {bits!r}')
  if not isinstance(frames, int | np.integer) or frames < 0:
    raise LoadError(f'frames: must be a whole number >= 0, got {frames!r}')


def check_sampling(max_tokens: int, temperature: float, seed: int = 0) -> None:
  """Raises LoadError for an answer of no length, a temperature or seed that is none."""
  if not isinstance(max_tokens, int | np.integer) or max_tokens < 1:
    raise LoadError(f'max_tokens: must be a whole number >= 1, got {max_tokens}')
  if not (math.isfinite(temperature) and temperature >= 0):
    raise LoadError(f'temperature: must be finite and >= 0, got {temperature}')
  if 0 < temperature < COLDEST:
    raise LoadError(
      f'temperature: must be 0 (greedy) or >= {COLDEST:g}, got {temperature:g}'
    )
  if not isinstance(seed, int | np.integer) or not 0 <= seed <= MOST_SEED:
    raise LoadError(f'seed: must be a whole number in 0..{MOST_SEED}, got {seed}')


def file_state(path: pathlib.Path) -> tuple:
  """Returns what changes where a file is replaced, also by one of the same time."""
  if not path.exists():
    return (path.absolute(),)
  status = path.stat()
  times = status.st_mtime_ns, status.st_ctime_ns
  return path.resolve(), status.st_ino, status.st_size, *times


def warn_of_template(folder: pathlib.Path, kind: str) -> None:
  """Warns of a foreign network whose files have the template of other conversations.

  It may have been tuned in ours since, with the template left as it was.

  Args:
    kind: of the checkpoint, as `readers.kind_of` returns it.
  """
  if kind in ('network', 'adapter') and (file := chat_templates.other_template(folder)):
    warnings.warn(
      f"{folder / file}: its chat template is of another conversation than Vicuna's, "
      '"USER: ... ASSISTANT: ...", in which questions are asked here',
      stacklevel=3,
    )


def check_texts(**texts: str) -> None:
  """Raises LoadError for texts, by name, that no tokenizer takes, or no answer has."""
  for name, text in texts.items():
    try:
      fields.check_text(text, name, marks=name != 'answer')
      fields.check_special(text, name)
    except fields.DataError as error:
      raise LoadError(str(error)) from None


def ids_of(token_ids: ArrayLike) -> np.ndarray:
  """Returns ids as an array; raises LoadError for what are no whole numbers."""
  try:
    ids = np.asarray(token_ids)
  except ValueError:
    raise LoadError(
      f'token_ids: rows of different lengths; fill them up with {PAD}'
    ) from None
  if ids.dtype.kind not in 'iu':
    raise LoadError(f'token_ids: expected whole numbers, got {ids.dtype}{ids.shape}')
  return ids


def check_inputs(token_ids: np.ndarray, frames: np.ndarray, vocab: int) -> None:
  """Raises LoadError for what is no batch of texts, each with its video.

  Args:
    token_ids: should be integers `[B, T]` with one video slot a row; each id is PAD,
      VIDEO or has a row in the table of embeddings.
    frames: should be `uint8[B, F, H, W, 3]`.
    vocab: rows of that table.
  """
  if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
    raise LoadError(
      f'frames: expected uint8[B, F, H, W, 3], got {frames.dtype}{frames.shape}'
    )
  if not frames.size:
    raise LoadError(f'frames: no pixels, got {frames.dtype}{frames.shape}')
  slots = np.sum(token_ids == VIDEO, axis=-1)
  if token_ids.shape[:1] != frames.shape[:1] or token_ids.ndim != 2 or any(slots != 1):
    raise LoadError(
      f'token_ids: expected int32[{len(frames)}, T] with one {VIDEO} a row, got '
      f'{token_ids.shape} with {slots.tolist()}'
    )
  special = (token_ids == PAD) | (token_ids == VIDEO)
  wrong = ~special & ((token_ids < 0) | (token_ids >= vocab))
  if wrong.any():
    row, column = np.argwhere(wrong)[0]
    raise LoadError(
      f'token_ids: {token_ids[row, column]} at [{row}, {column}] is no token of this '
      f'network; expected 0 to {vocab - 1}, {VIDEO} for the video or {PAD} for padding'
    )


def check_room(valid: np.ndarray, visual: int, positions: int) -> None:
  """Raises LoadError for texts that go past the last position; pads take none.

  Args:
    valid: `bool[B, T]`, true at real tokens and at the slot of the video.
    visual: tokens of a video.
  """
  text = int(np.max(np.sum(valid, axis=-1))) - 1
  if text + visual > positions:
    raise LoadError(
      f'token_ids: {text} tokens of text and {visual} of video exceed the {positions} '
      'positions of the network; shorten the text or pass fewer frames'
    )
