"""How a score is counted: as the judge gives it, or cut to an integer."""

import dataclasses
import math
from typing import Literal

from vlm_rlaif_jax.evals.records import Verdict


def rounded(verdict: Verdict, rounding: Literal['truncate', 'none']) -> Verdict:
  """Returns a verdict whose score counts as 4 where it is 4.8, by 'truncate'."""
  if verdict.score is None or rounding == 'none':
    return verdict
  return dataclasses.replace(verdict, score=float(math.trunc(verdict.score)))
