"""What RLAIF repaired: planted faults, long answers by kind, and short ones kept.

A planted fault is in the long answers that SFT learns from, so a model that learned it
says what the fault says. For each fault, of the facts that it is about and that an
answer speaks of, the share that is stated as it is and the share that is stated as the
fault has it:

    swapped   a move or bounce in some direction         the opposite direction
    stays     an object that stays                       a motion
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data.world import claims
from vlm_rlaif_jax.data.world.scene import MOVES, STAYS, flip_predicate
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, statistics

Rows = Sequence[Mapping[str, Any]]


def faulty_forms(predicate: str, axes: str) -> dict[str, tuple[str, ...]]:
  """Returns what each fault makes of a true predicate; nothing where it is the same.

  Args:
    axes: which directions a flipped video swaps, as `world.flip_axes`.
  """
  other = flip_predicate(predicate, axes)
  return {
    'swapped': () if other == predicate else (other,),
    'stays': MOVES if predicate == STAYS else (),
  }


def faults(
  rows: Rows, predictions: Sequence[str], truth: Truth, axes: str = 'horizontal'
) -> dict[str, Any]:
  """Returns for each planted fault how often answers state it, and the facts.

  Args:
    axes: of `faulty_forms`.

  Returns:
    by fault: facts that the answers speak of, share stated right, share stated as the
      fault has it.
  """
  counts = {
    name: np.zeros(3, int) for name in faulty_forms('', axes)
  }  # facts, right, faulty
  for row, prediction in zip(rows, predictions, strict=True):
    key = row['question_id']
    if key not in truth or not truth.is_long(key):
      continue
    record = truth.records[key]
    stated = set(claims.read_claims(prediction, record['phase'])[0])
    scope = {tuple(pair) for pair in record['span']}
    for name, phase, predicate in record['facts']:
      if (name, phase) not in scope:
        continue
      for fault, wrong in faulty_forms(predicate, axes).items():
        if not wrong:
          continue
        right = (name, phase, predicate) in stated
        faulty = any((name, phase, form) in stated for form in wrong)
        counts[fault] += (right or faulty, right, faulty)
  return {
    name: {
      'facts': int(facts),
      'right': float(right / max(facts, 1)),
      'faulty': float(faulty / max(facts, 1)),
    }
    for name, (facts, right, faulty) in counts.items()
  }


def long_answers(
  rows: Rows, predictions: Sequence[str], correct: Sequence[float], truth: Truth
) -> dict[str, Any]:
  """Returns accuracy of long and of short answers, and rates of claims of long ones.

  Nothing if the facts of some question are not known.
  """
  if not all(row['question_id'] in truth for row in rows):
    return {}
  is_long = [truth.is_long(row['question_id']) for row in rows]
  scores = [
    truth.score(row['question_id'], prediction)
    for row, prediction, long in zip(rows, predictions, is_long, strict=True)
    if long
  ]
  values, mask = np.asarray(correct), np.asarray(is_long)
  videos = np.asarray([row['video_name'] for row in rows])
  result: dict[str, Any] = {}
  for name, chosen in (('long', mask), ('short', ~mask)):
    if chosen.any():
      interval = statistics.share_interval(values[chosen], list(videos[chosen]))
      accuracy = float(values[chosen].mean())
      result[name] = {
        'n': int(chosen.sum()),
        'accuracy': accuracy,
        'interval': interval,
      }
  if scores:
    result['long'] |= descriptions.rates(scores)
  return result


def change(
  rows: Rows, before: Sequence[float], after: Sequence[float], truth: Truth | None
) -> dict[str, Any]:
  """Returns the change of accuracy with its paired interval: all, long, short, kinds.

  The interval is None where the questions are about one video.

  Args:
    before, after: 1.0 for each correct answer, question by question.
  """
  videos = np.asarray([row['video_name'] for row in rows])
  groups = {'all': np.ones(len(rows), bool)}
  if truth is not None and all(row['question_id'] in truth for row in rows):
    is_long = np.asarray([truth.is_long(row['question_id']) for row in rows])
    groups |= {'long': is_long, 'short': ~is_long}
  kinds = np.asarray([row.get('kind', 'all') for row in rows])
  groups |= {str(kind): kinds == kind for kind in np.unique(kinds)}
  first, second = np.asarray(before), np.asarray(after)
  return {
    name: {
      'n': int(chosen.sum()),
      'change': float(np.mean(second[chosen] - first[chosen])),
      'interval': statistics.paired_interval(
        first[chosen].tolist(), second[chosen].tolist(), list(videos[chosen])
      ),
    }
    for name, chosen in groups.items()
    if chosen.any()
  }
