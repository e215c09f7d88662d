"""Checks that numbers of settings are finite and in a range, and numbers as text."""

import math
from collections.abc import Callable, Sequence
from typing import Any


def within(settings: Any, span: str, *names: str) -> None:
  """Raises ValueError for fields that are not in a range; NaN is in none.

  Args:
    span: '>= 1', '> 0' or 'finite', which leave infinity out; or an interval like
      '[0, 1)', where '(0, inf]' lets infinity in.

  Raises:
    ValueError: `field: must be in [0, 1), got 1.0`.
  """
  for name in names:
    value = getattr(settings, name)
    if not _holds(span, value):
      allowed = f'in {span}' if span[0] in '[(' else span
      if span[0] == '>' and not -math.inf < value < math.inf:
        allowed = f'finite and {span}'
      raise ValueError(f'{name}: must be {allowed}, got {value}')


def _holds(span: str, value: float) -> bool:
  if span[0] in '[(':
    least, most = (float(end) for end in span[1:-1].split(','))
    above = value >= least if span[0] == '[' else value > least
    return above and (value <= most if span[-1] == ']' else value < most)
  if not -math.inf < value < math.inf:  # any int, where math.isfinite may overflow
    return False
  if span == 'finite':
    return True
  sign, least = span.split()
  return value >= float(least) if sign == '>=' else value > float(least)


def bracket(interval: Sequence[float] | None, text_of: Callable[[float], str]) -> str:
  """Returns '[low, high]' of an interval; '[not known]' of None, as of one video."""
  if interval is None:
    return '[not known]'
  return f'[{", ".join(map(text_of, interval))}]'


def percent(value: float | None) -> str:
  """Returns a share as text, 'n/a' where it is not known."""
  return 'n/a' if value is None else f'{value:.1%}'
