"""Uncertainty of a mean over questions that share videos.

One video says nothing about others, so below two there is no interval of a mean or of a
change. Where the means of all videos are alike, resampling would give an interval of
one point, however few they are; there the interval is by the number of videos and the
bounds of what is measured, and where it has none there is no interval.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]
UNBOUNDED = (-math.inf, math.inf)
ALIKE = 1e-9  # means of clusters that differ by less are equal
Z = 1.96  # of the normal distribution, for 95 %


def clustered_interval(
  values: Sequence[float] | np.ndarray,
  clusters: Sequence[str],
  bounds: Interval = UNBOUNDED,
  seed: int = 0,
  draws: int = 2000,
) -> Interval | None:
  """Returns the 95 % bootstrap interval of a mean; where clusters are alike, `_alike`.

  Args:
    clusters: the video of each value; whole clusters are resampled.
    bounds: least and greatest value that there can be.
    seed: of the resampling.
    draws: bootstrap samples.

  Returns:
    (low, high); None of fewer than two clusters, and where the means of all are alike
    and no bounds say how far others may be from them.
  """
  names, index = np.unique(np.asarray(clusters), return_inverse=True)
  if len(names) < 2:
    return None
  total = np.bincount(index, weights=np.asarray(values, float), minlength=len(names))
  count = np.bincount(index, minlength=len(names))
  if np.ptp(total / count) < ALIKE:
    return _alike(float(total.sum() / count.sum()), len(names), bounds)
  rng = np.random.default_rng(seed)
  resampled = rng.integers(len(names), size=(draws, len(names)))
  means = total[resampled].sum(1) / count[resampled].sum(1)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


def _alike(value: float, clusters: int, bounds: Interval) -> Interval | None:
  """Returns the interval of a mean where every cluster has the same.

  By Wilson (1927), with a trial for each cluster, no more than a share of
  z^2 / (n + z^2) of all clusters is otherwise; those may be anywhere in the bounds.
  """
  low, high = bounds
  if not (np.isfinite(bounds).all() and low - ALIKE <= value <= high + ALIKE):
    return None
  share = Z**2 / (clusters + Z**2)
  return value - share * (value - low), value + share * (high - value)


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
) -> Interval:
  """Returns the 95 % interval of a share of hits, each between 0 and 1.

  It is `clustered_interval`; but of one cluster it is Wilson's, with one trial.
  """
  interval = clustered_interval(hits, clusters, (0.0, 1.0))
  if interval is not None:
    return interval
  mean, square = float(np.mean(hits)), Z**2
  middle = (mean + square / 2) / (1 + square)
  spread = mean * (1 - mean) + square / 4
  reach = Z * spread**0.5 / (1 + square)
  return max(middle - reach, 0.0), min(middle + reach, 1.0)


def paired_interval(
  before: Sequence[float],
  after: Sequence[float],
  clusters: Sequence[str],
  best: float = 1.0,
) -> Interval | None:
  """Returns the 95 % interval of the mean change, question by question.

  Args:
    best: greatest value of what changes, whose least is 0; infinity where there is
      none.

  Returns:
    That of `clustered_interval`, so None of fewer than two clusters.
  """
  return clustered_interval(np.subtract(after, before), clusters, (-best, best))


def metric(
  values: Sequence[float], clusters: Sequence[str], best: float = 1.0
) -> dict[str, Any]:
  """Returns the mean of values with its interval, and what is unscored.

  Args:
    best: value; infinity where there is none, and so no range of what is unscored.

  Returns:
    value, interval, n, unscored, low and high. Interval is None where there is none:
    of no value, and as `clustered_interval` says.
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
) -> Interval | None:
  """Returns the interval of a mean; of hits and misses that of a share."""
  if best == 1 and np.isin(values, (0.0, 1.0)).all():
    return share_interval(values, clusters)
  return clustered_interval(values, clusters, (0.0, best))
