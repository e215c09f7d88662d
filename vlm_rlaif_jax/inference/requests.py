"""Checks what a caller asks of a network, before anything is computed."""

import math
import pathlib
import warnings

import numpy as np

from vlm_rlaif_jax.data import chat_templates, fields
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD, VIDEO


class LoadError(UserError):
  """A request that a checkpoint cannot fulfill."""


def check_sampling(max_tokens: int, temperature: float) -> None:
  """Raises LoadError for an answer of no length, or a temperature that is none."""
  if max_tokens < 1:
    raise LoadError(f'max_tokens: must be >= 1, got {max_tokens}')
  if not (math.isfinite(temperature) and temperature >= 0):
    raise LoadError(f'temperature: must be finite and >= 0, got {temperature}')


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
  """Raises LoadError for texts, by name, that no tokenizer takes."""
  for name, text in texts.items():
    try:
      fields.check_text(text, name)
    except fields.DataError as error:
      raise LoadError(str(error)) from None


def check_inputs(token_ids: np.ndarray, frames: np.ndarray, vocab: int) -> None:
  """Raises LoadError for what is no batch of texts, each with its video.

  Args:
    token_ids: should be `int32[B, T]` with one video slot a row; each id is PAD, VIDEO
      or has a row in the table of embeddings.
    frames: should be `uint8[B, F, H, W, 3]`.
    vocab: rows of that table.
  """
  if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
    raise LoadError(
      f'frames: expected uint8[B, F, H, W, 3], got {frames.dtype}{frames.shape}'
    )
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
