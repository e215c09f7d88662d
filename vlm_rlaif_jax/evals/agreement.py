"""How far two judges agree on one run, and how far its conclusion depends on the judge.

kappa            agreement beyond chance on right and wrong (Cohen 1960)
weighted_kappa   the same on scores, disagreement weighed by its square (Cohen 1968)
spearman         correlation of the ranks of scores, ties at their mean rank
equal            share of cases with the same verdict: right or wrong, or the same score
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.evals.judges import scores
from vlm_rlaif_jax.evals.records import Case, Verdict

Verdicts = Mapping[tuple[str, str], Verdict]
"""By key and criterion."""
# Videos below which no change is one: of five, all rise by chance in 1 of 16 cases.
DECIDING = 6


def kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
  """Returns Cohen's kappa of two raters of the same cases.

  Returns:
    (p_o - p_e) / (1 - p_e), where p_o is the share of equal ratings and p_e what the
    frequencies of both make of it by chance; None if p_e is 1.
  """
  return weighted_kappa(first, second, lambda distance: distance != 0)


def weighted_kappa(
  first: Sequence[int], second: Sequence[int], weight=np.square
) -> float | None:
  """Returns Cohen's weighted kappa: 1 - observed / expected mean disagreement.

  Args:
    first, second: ratings, integers.
    weight: of the distances of ratings; 0 for equal ones.

  Returns:
    None where both raters give one and the same rating throughout.
  """
  a, b = np.asarray(first), np.asarray(second)
  if not a.size:
    return None
  observed = np.mean(weight(a - b).astype(float))
  expected = np.mean(weight(a[:, None] - np.unique(b)[None, :]) @ _shares(b))
  return float(1 - observed / expected) if expected else None


def _shares(values: np.ndarray) -> np.ndarray:
  """Returns the share of each distinct value, ascending."""
  return np.unique(values, return_counts=True)[1] / values.size


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
  """Returns Spearman's rank correlation; None where one side is constant."""
  ranks = np.stack([_ranks(np.asarray(values, float)) for values in (first, second)])
  if ranks.shape[1] < 2 or (np.ptp(ranks, axis=1) == 0).any():
    return None
  return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns ranks from 1; equal values share their mean rank."""
  _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[index]


def of_criterion(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
  """Returns how far two judges agree on the same cases.

  Returns:
    n: cases that both scored; unscored: those that the first and the second did not.
    kappa, where both say what is right; weighted_kappa, spearman, equal, and the means
    and the mean difference of scores (second less first).
  """
  pairs = [
    (a, b)
    for a, b in zip(first, second, strict=True)
    if a.score is not None and b.score is not None
  ]
  result: dict[str, Any] = {
    'cases': len(first),
    'n': len(pairs),
    'unscored': [sum(v.score is None for v in side) for side in (first, second)],
  }
  if not pairs:
    return result
  a, b = (np.asarray([pair[side].score for pair in pairs], float) for side in (0, 1))
  # Half points, so that 2.5 and scores as 4.8 have their place on the scale.
  steps = [np.rint(2 * values).astype(int).tolist() for values in (a, b)]
  result |= {
    'weighted_kappa': weighted_kappa(*steps),
    'spearman': spearman(a.tolist(), b.tolist()),
    'means': [float(a.mean()), float(b.mean())],
    'difference': float(np.mean(b - a)),
  }
  decided = [
    (x.correct, y.correct)
    for x, y in pairs
    if x.correct is not None and y.correct is not None
  ]
  if decided:
    right = np.asarray(decided, int)
    result['kappa'] = kappa(right[:, 0].tolist(), right[:, 1].tolist())
    result['equal'] = float(np.mean(right[:, 0] == right[:, 1]))
  else:
    result['equal'] = float(np.mean(a == b))
  return result


def of_benchmark(
  models: Mapping[str, tuple[Verdicts, Verdicts]], videos: Mapping[str, str]
) -> dict[str, Any]:
  """Returns how far two judges agree on a benchmark.

  Args:
    models: by name, the verdicts of the first and of the second judge.
    videos: by key of an item; intervals resample whole videos.

  Returns:
    criteria: by criterion, over the answers of all models together.
    conclusions: by control and metric, the change to RLAIF by either judge, over the
      items that both scored, and how far they differ.
  """
  together: dict[str, tuple[list[Verdict], list[Verdict]]] = {}
  for first, second in models.values():
    for case in first:
      if case in second:
        sides = together.setdefault(case[1], ([], []))
        sides[0].append(first[case])
        sides[1].append(second[case])
  return {
    'criteria': {name: of_criterion(*sides) for name, sides in together.items()},
    'conclusions': conclusions(models, videos),
  }


def conclusions(
  models: Mapping[str, tuple[Verdicts, Verdicts]], videos: Mapping[str, str]
) -> dict[str, Any]:
  """Returns the changes to RLAIF by either judge, and whether they say the same."""
  result: dict[str, Any] = {}
  for control in scores.CONTROLS:
    if control not in models or 'rlaif' not in models:
      continue
    before = [_scores(side) for side in models[control]]
    after = [_scores(side) for side in models['rlaif']]
    for metric in before[0]:
      steps = [
        _steps(b.get(metric, {}), a.get(metric, {}))
        for b, a in zip(before, after, strict=True)
      ]
      shared = [key for key in steps[0] if key in steps[1]]
      if shared:
        result.setdefault(control, {})[metric] = _compared(
          [[side[key] for key in shared] for side in steps],
          [videos[key] for key in shared],
          scores.best(metric),
        )
  return result


def _scores(verdicts: Verdicts) -> scores.Scores:
  cases = [
    Case(key=key, criterion=name, questions=(), reference='', predictions=())
    for key, name in verdicts
  ]
  return scores.scores_of(cases, list(verdicts.values()))


def _steps(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
  """Returns the change of each item that has both scores."""
  steps = {key: after[key] - before[key] for key in before if key in after}
  return {key: step for key, step in steps.items() if not math.isnan(step)}


def _compared(
  steps: Sequence[Sequence[float]], clusters: Sequence[str], best: float
) -> dict:
  """Returns the changes by two judges over the same items.

  Args:
    best: greatest value of what changes.

  Returns:
    changes: mean, interval and direction by each.
    difference: second less first, with its paired interval.
    Intervals are None where they are not known: `statistics`.
    same: whether both find a rise, a fall, or neither.
  """
  changes = []
  for side in steps:
    interval = statistics.clustered_interval(side, clusters, (-best, best))
    direction = 'undecided'
    if interval is not None and len(set(clusters)) >= DECIDING:
      low, high = interval
      direction = 'up' if low > 0 else 'down' if high < 0 else 'undecided'
    changes.append(
      {
        'change': float(np.mean(side)),
        'interval': interval,
        'direction': direction,
      }
    )
  return {
    'n': len(clusters),
    'changes': changes,
    'difference': float(np.mean(np.subtract(steps[1], steps[0]))),
    # Each of two changes is from -best to best.
    'interval': statistics.paired_interval(steps[0], steps[1], clusters, 2 * best),
    'same': changes[0]['direction'] == changes[1]['direction'],
  }
