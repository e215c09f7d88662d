"""Scores answers to prompts that come with a reference answer.

A row of the RL data may have `answer_type`: 'general' (no reference answer), the letter
of a multiple choice, 'yes' or 'no'; and `length_bonus_multiplier`, a number.
"""

import math
import re

from vlm_rlaif_jax.data import fields
from vlm_rlaif_jax.data.rows import DataError

GENERAL = 'general'
_TYPES = re.compile(r'general|yes|no|[a-z]', re.IGNORECASE)


def answer_type(record: dict, where: str) -> tuple[str, float]:
  """Returns the answer type in lower case and the length multiplier of a row."""
  record = fields.present(record)
  kind = record.get('answer_type', GENERAL)
  if not isinstance(kind, str) or not _TYPES.fullmatch(kind):
    raise DataError(
      f"{where}: answer_type must be 'general', 'yes', 'no' or one letter, got {kind!r}"
    )
  weight = record.get('length_bonus_multiplier', 1.0)
  if (
    isinstance(weight, bool)
    or not isinstance(weight, int | float)
    or not math.isfinite(weight)
  ):
    raise DataError(
      f'{where}: length_bonus_multiplier must be a finite number, got {weight!r}'
    )
  return kind.lower(), float(weight)


def agreement(kind: str, answer: str) -> float:
  """Returns how far an answer agrees with the reference answer, in [-0.5, 1].

  A letter: 1 if the answer begins with "B." or names "correct option is B.". No: +0.5
  for an answer that starts with "No", -0.5 for "Yes". Yes and general: 0, as in the
  reference.
  """
  text = answer.strip()
  if len(kind) == 1:
    letter = kind.upper()
    chosen = re.search(rf'correct option is:? *{letter}\b', text, re.IGNORECASE)
    return float(text.startswith(f'{letter}.') or bool(chosen))
  if kind == 'no':
    return 0.5 * text.startswith('No') - 0.5 * text.startswith('Yes')
  return 0.0
