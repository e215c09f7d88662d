"""From verdicts to numbers: means with intervals, what is unscored, and changes.

value      mean over the cases that have a score
interval   95 %, whole videos resampled; None where it is not known: `statistics`
n          cases that have a score
unscored   cases that have none; `low` and `high` are the mean if all of these were the
           worst and the best there is
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST
from vlm_rlaif_jax.evals.records import Case, Verdict

ACCURACY, SCORE = 'accuracy', 'score'  # of criterion 'answer'; others have its name
CONTROLS = ('sft', 'init')  # that RLAIF is compared with

Scores = Mapping[str, Mapping[str, float]]
"""By metric, the value of each item by its key; NaN if unscored."""


def scores_of(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> Scores:
  """Returns the values of verdicts: accuracy and score, or that of their criterion."""
  values: dict[str, dict[str, float]] = {}
  for case, verdict in zip(cases, verdicts, strict=True):
    score = math.nan if verdict.score is None else verdict.score
    if case.criterion == 'answer':
      correct = math.nan if verdict.correct is None else float(verdict.correct)
      values.setdefault(ACCURACY, {})[case.key] = correct
      values.setdefault(SCORE, {})[case.key] = score
    else:
      values.setdefault(case.criterion, {})[case.key] = score
  return values


def best(metric: str) -> float:
  """Returns the best value that a metric can have."""
  return 1.0 if metric == ACCURACY else HIGHEST


def metrics(scores: Scores, videos: Mapping[str, str]) -> dict[str, dict[str, Any]]:
  """Returns for each metric its mean, interval, and what is unscored.

  Args:
    videos: by key of an item.
  """
  return {
    name: statistics.metric(
      list(values.values()), [videos[key] for key in values], best(name)
    )
    for name, values in scores.items()
  }


def changes(
  models: Mapping[str, Scores], videos: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
  """Returns by control and metric the change to RLAIF, item by item.

  Items that have a score of both are compared.
  """
  if 'rlaif' not in models:
    return {}
  return {
    control: {
      name: change
      for name, before in models[control].items()
      if (change := paired(before, models['rlaif'].get(name, {}), videos, best(name)))
    }
    for control in CONTROLS
    if control in models
  }


def paired(
  before: Mapping[str, float],
  after: Mapping[str, float],
  videos: Mapping[str, str],
  best: float,
) -> dict[str, Any]:
  """Returns the mean change with its interval; {} where no item has both scores.

  Args:
    best: greatest value of what changes.
  """
  keys = [
    key for key in before if not math.isnan(before[key] + after.get(key, math.nan))
  ]
  if not keys:
    return {}
  first, second = [before[key] for key in keys], [after[key] for key in keys]
  clusters = [videos[key] for key in keys]
  return {
    'change': float(np.mean(np.subtract(second, first))),
    'interval': statistics.paired_interval(first, second, clusters, best),
    'n': len(keys),
  }
