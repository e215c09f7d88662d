"""From values of items to what a summary says: means with intervals, and changes.

value      mean over the items that have a score
interval   95 %, whole videos resampled; None where it is not known: `statistics`
n          items that have a score
unscored   items that have none; `low` and `high` are the mean if all of these were
           the worst and the best there is
standard_error   of a reward, robust to items that share a video
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.evals.records import Item, Values

CONTROLS = ('sft', 'init')  # that RLAIF is compared with


def metrics(
  benchmark: Benchmark, items: Sequence[Item], values: Values
) -> dict[str, dict[str, Any]]:
  """Returns `metric` of each kind of value, and of each kind of item below it.

  Metrics in `benchmark.partial` are of some items only; the others are left out, and
  not unscored.
  """
  clusters = [item.video_name for item in items]
  kinds = [str(item.fields.get('kind', '')) for item in items]
  result = {}
  for name, each in values.items():
    best = benchmark.best.get(name, 1.0)
    numbers = list(range(len(items)))
    if name in benchmark.partial:
      numbers = [i for i in numbers if not math.isnan(each[i])]
    if not numbers:
      continue
    result[name] = statistics.metric(*_chosen(each, clusters, numbers), best)
    if name in benchmark.with_error:
      scored = [i for i in numbers if not math.isnan(each[i])]
      error = statistics.standard_error(*_chosen(each, clusters, scored))
      result[name]['standard_error'] = error
    if len(set(kinds)) > 1 and name not in benchmark.weighted:
      by_kind = {
        kind: statistics.metric(
          *_chosen(each, clusters, [i for i in numbers if kinds[i] == kind])
        )
        for kind in sorted({kinds[i] for i in numbers})
      }
      result[name]['by_kind'] = {
        kind: {'value': one['value'], 'n': one['n']} for kind, one in by_kind.items()
      }
  return result


def _chosen(
  values: Sequence[float], clusters: Sequence[str], numbers: Sequence[int]
) -> tuple[list[float], list[str]]:
  """Returns the values and clusters with some numbers."""
  return [values[i] for i in numbers], [clusters[i] for i in numbers]


def changes(
  benchmark: Benchmark,
  items: Sequence[Item],
  values: Mapping[str, Values],
  predictions: Mapping[str, Sequence[tuple[str, ...]]],
) -> dict[str, dict[str, Any]]:
  """Returns by control the change of each metric to RLAIF, item by item.

  Items that have a score of both are compared. `changed` is the share of items whose
  answers differ.
  """
  clusters = np.asarray([item.video_name for item in items])
  result: dict[str, dict[str, Any]] = {}
  for control in CONTROLS:
    if control not in values or 'rlaif' not in values:
      continue
    result[control] = {}
    for name, before in values[control].items():
      first = np.asarray(before, float)
      second = np.asarray(values['rlaif'].get(name, [math.nan] * len(items)), float)
      both = ~np.isnan(first) & ~np.isnan(second)
      if not both.any():
        continue
      result[control][name] = {
        'change': float(np.mean(second[both] - first[both])),
        'interval': statistics.paired_interval(
          first[both].tolist(),
          second[both].tolist(),
          list(clusters[both]),
          benchmark.best.get(name, 1.0),
        ),
        'n': int(both.sum()),
      }
    pairs = zip(predictions[control], predictions['rlaif'], strict=True)
    differs = [float(before != after) for before, after in pairs]
    result[control]['changed'] = {
      'change': float(np.mean(differs)),
      'interval': statistics.share_interval(differs, list(clusters)),
      'n': len(differs),
    }
  return result
