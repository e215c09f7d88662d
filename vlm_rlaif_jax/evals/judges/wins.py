"""How often the answer of RLAIF is better than that of a control, asked in both orders.

A judge that prefers what stands first gives each item once to either side, which counts
as a tie. Answers that are equal are one without being judged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST, MIDDLE
from vlm_rlaif_jax.evals.records import Case, Judge, Verdict

ORDERS = ('control first', 'rlaif first')
EQUAL = 'equal answers'  # `raw` of a verdict that nobody had to give
Pair = tuple[Verdict, Verdict]  # by order


def preference_cases(before: Case, after: Case) -> tuple[Case, Case]:
  """Returns which of two answers to a question is better, in both orders.

  Args:
    before, after: cases with the answers of the control and of RLAIF.
  """
  answers = (before.predictions[0], after.predictions[0])
  first, second = (
    Case(
      key=before.key,
      criterion='preference',
      questions=before.questions,
      reference=before.reference,
      predictions=order,
    )
    for order in (answers, answers[::-1])
  )
  return first, second


def judge_pairs(
  judge: Judge, before: Mapping[str, Case], after: Mapping[str, Case]
) -> dict[str, Pair]:
  """Returns the verdicts in both orders on each item that both answered.

  Args:
    before, after: by key, cases with the answers of the control and of RLAIF.
  """
  shared = [key for key in before if key in after]
  differ = [key for key in shared if before[key].predictions != after[key].predictions]
  pairs = [preference_cases(before[key], after[key]) for key in differ]
  verdicts = judge.verdicts([case for pair in pairs for case in pair])
  given = dict(
    zip(differ, zip(verdicts[::2], verdicts[1::2], strict=True), strict=True)
  )
  tie = Verdict(MIDDLE, raw=EQUAL)
  return {key: given.get(key, (tie, tie)) for key in shared}


def win_rate(pairs: Mapping[str, Pair], videos: Mapping[str, str]) -> dict[str, Any]:
  """Returns the share of items that RLAIF wins; a tie is half a win.

  Args:
    videos: by key of an item.

  Returns:
    value, interval (95 %, whole videos resampled), n, unscored; wins, ties and losses;
    order_agreement: the share of items, of those with different answers, in which both
    orders have the same winner, or a tie in both.
  """
  points = {key: _points(pair) for key, pair in pairs.items()}
  scored = [key for key, value in points.items() if not math.isnan(value)]
  result: dict[str, Any] = {
    'value': None, 'interval': None, 'n': len(scored),
    'unscored': len(pairs) - len(scored),
  }  # fmt: skip
  if not scored:
    return result
  values = np.asarray([points[key] for key in scored])
  compared = [pairs[k] for k in scored if pairs[k][0].raw != EQUAL]
  result['value'] = float(values.mean())
  result['interval'] = statistics.share_interval(values, [videos[k] for k in scored])
  result['wins'] = int((values > 0.5).sum())
  result['ties'] = int((values == 0.5).sum())
  result['losses'] = int((values < 0.5).sum())
  result['order_agreement'] = (
    float(np.mean([_agrees(pair) for pair in compared])) if compared else None
  )
  return result


def _points(pair: Pair) -> float:
  """Returns the win of RLAIF, 0 to 1, over both orders; NaN if one is unscored."""
  first, second = pair[0].score, pair[1].score
  if first is None or second is None:
    return math.nan
  return (_win(HIGHEST - first) + _win(second)) / 2


def _win(score: float) -> float:
  """Returns 1, a half or 0 for a score over, at or under the middle."""
  return 0.5 + 0.5 * float(np.sign(score - MIDDLE))


def _agrees(pair: Pair) -> bool:
  first, second = pair[0].score, pair[1].score
  assert first is not None and second is not None
  return _win(HIGHEST - first) == _win(second)


def rows_of(
  pairs: Mapping[str, Pair],
  before: Mapping[str, str] | None = None,
  after: Mapping[str, str] | None = None,
) -> Sequence[dict[str, Any]]:
  """Returns a row for each verdict, for a file.

  Args:
    before, after: by key, digests of the answers of the control and of RLAIF, where the
      rows are to say what they are on: `files.digests`.
  """

  def answers(key: str) -> dict[str, Any]:
    return {'answers': [before[key], after[key]]} if before and after else {}

  return [
    {
      'key': key,
      'order': order,
      'score': verdict.score,
      'raw': verdict.raw,
      'error': verdict.error,
      **answers(key),
    }
    for key, pair in pairs.items()
    for order, verdict in zip(ORDERS, pair, strict=True)
  ]
