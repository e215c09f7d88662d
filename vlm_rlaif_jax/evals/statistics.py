"""Uncertainty of a mean over questions that share videos."""

from collections.abc import Sequence

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


def paired_interval(
  before: Sequence[float], after: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float]:
  """Returns the 95 % interval of the mean change, question by question."""
  return clustered_interval(np.subtract(after, before).tolist(), clusters)
