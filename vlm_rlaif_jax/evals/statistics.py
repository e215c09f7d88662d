"""Uncertainty of a mean over questions that share videos."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def clustered_interval(
  values: Sequence[float] | np.ndarray,
  clusters: Sequence[str],
  seed: int = 0,
  draws: int = 2000,
) -> tuple[float, float]:
  """Returns the 95 % bootstrap interval of a mean.

  Args:
    clusters: the video of each value; whole clusters are resampled.
    seed: of the resampling.
    draws: bootstrap samples.
  """
  names, index = np.unique(np.asarray(clusters), return_inverse=True)
  total = np.bincount(index, weights=np.asarray(values, float), minlength=len(names))
  count = np.bincount(index, minlength=len(names))
  rng = np.random.default_rng(seed)
  resampled = rng.integers(len(names), size=(draws, len(names)))
  means = total[resampled].sum(1) / count[resampled].sum(1)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


def standard_error(
  values: Sequence[float] | np.ndarray, clusters: Sequence[str]
) -> float | None:
  """Returns the standard error of a mean, robust to values that share a cluster.

  Where every value is its own cluster, it is s / sqrt(n) (Liang and Zeger 1986, with
  the correction G / (G - 1) for G clusters). None of a single cluster.
  """
  names, index = np.unique(np.asarray(clusters), return_inverse=True)
  if len(names) < 2:
    return None
  array = np.asarray(values, float)
  totals = np.bincount(index, weights=array - array.mean(), minlength=len(names))
  variance = np.sum(totals**2) * len(names) / (len(names) - 1)
  return float(np.sqrt(variance) / len(array))


def share_interval(
  hits: Sequence[float] | np.ndarray, clusters: Sequence[str]
) -> tuple[float, float]:
  """Returns the 95 % interval of a share of hits, each between 0 and 1.

  It is `clustered_interval`; but where all hits are 1, or all 0, or all of one cluster,
  resampling would give an interval of one point, however few they are. There it is
  Wilson's (1927), with a trial for each cluster.
  """
  mean, trials = float(np.mean(hits)), len(set(clusters))
  if 0 < mean < 1 and trials > 1:
    return clustered_interval(hits, clusters)
  square = 1.96**2
  if mean in (0.0, 1.0):
    reach = square / (trials + square)
    return (1 - reach, 1.0) if mean else (0.0, reach)
  middle = (mean + square / (2 * trials)) / (1 + square / trials)
  spread = (mean * (1 - mean) + square / (4 * trials)) / trials
  reach = 1.96 * spread**0.5 / (1 + square / trials)
  return middle - reach, middle + reach


def paired_interval(
  before: Sequence[float], after: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float]:
  """Returns the 95 % interval of the mean change, question by question."""
  return clustered_interval(np.subtract(after, before).tolist(), clusters)


def metric(
  values: Sequence[float], clusters: Sequence[str], best: float = 1.0
) -> dict[str, Any]:
  """Returns the mean of values with its interval, and what is unscored.

  Args:
    best: value; infinity where there is none, and so no range of what is unscored.
  """
  array, names = np.asarray(values, float), np.asarray(clusters)
  scored = ~np.isnan(array)
  n, unscored = int(scored.sum()), int((~scored).sum())
  result: dict[str, Any] = {'value': None, 'interval': None, 'n': n}
  if n:
    result['value'] = float(array[scored].mean())
    result['interval'] = _interval(array[scored], list(names[scored]), best)
  result['unscored'] = unscored
  if unscored and best == np.inf:
    result['low'] = result['high'] = None
  elif unscored:
    result['low'] = float(np.nan_to_num(array, nan=0.0).mean())
    result['high'] = float(np.nan_to_num(array, nan=best).mean())
  else:
    result['low'] = result['high'] = result['value']
  return result


def _interval(
  values: np.ndarray, clusters: Sequence[str], best: float
) -> tuple[float, float]:
  """Returns the interval of a mean; of hits and misses that of a share."""
  if best == 1 and np.isin(values, (0.0, 1.0)).all():
    return share_interval(values, clusters)
  return clustered_interval(values, clusters)
