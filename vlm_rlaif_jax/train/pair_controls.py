"""What a reward model knows, and from where: held-out accuracy beside its controls.

    with the video        what PPO will use
    without the video     zeros in its place: what wording alone gives away
    another video         that of another pair: what any video gives away
    the shorter answer    no model at all

Each is measured against the labels and, where a data set has truth, against the true
quality of both answers. A tie of scores is half a hit, so that a model that cannot tell
two answers apart gets one half whatever the file prefers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data.pairs import PairSample, place_of
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.train import sinks
from vlm_rlaif_jax.train.sinks import Media

BINS = 10  # of the reliability curve
WORST = 4  # pairs that are displayed


def hits(margins: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns 1 where the sign of a margin is right, 0 where wrong, 1/2 where it is 0.

  Args:
    margins: `[N]`, score of the second answer - score of the first.
    second: `bool[N]`, whether the second answer is the better one.
  """
  right = (margins > 0) == second
  return np.where(margins == 0, 0.5, right.astype(float))


def accuracy_of(samples: Sequence[PairSample], margins: np.ndarray) -> dict[str, Any]:
  """Returns the accuracy on pairs, and its 95 % interval over their videos."""
  preferred = np.asarray([sample.pair.preferred == 1 for sample in samples])
  right = hits(margins, preferred)
  videos = [place_of(sample.pair) for sample in samples]
  return {
    'accuracy': float(np.mean(right)),
    'accuracy_interval': statistics.share_interval(right, videos),
  }


def length_margins(samples: Sequence[PairSample]) -> np.ndarray:
  """Returns length of the first answer - length of the second, in tokens."""
  return np.asarray([float(len(s.ids[0]) - len(s.ids[1])) for s in samples])


def true_margins(samples: Sequence[PairSample], truth: Truth) -> np.ndarray:
  """Returns true quality of the second answer - that of the first; NaN if unknown."""
  margins = []
  for sample in samples:
    key = sample.pair.example.key
    if key not in truth:
      margins.append(np.nan)
      continue
    first, second = (truth.score(key, text).quality for text in sample.pair.answers)
    margins.append(second - first)
  return np.asarray(margins)


def report(
  samples: Sequence[PairSample],
  margins: dict[str, np.ndarray],
  truth: Truth | None,
) -> dict[str, Any]:
  """Returns accuracy with its controls, against labels and truth, and calibration.

  Args:
    margins: by view: own, blank, other; no_narrative where the prompt has one.
  """
  preferred = np.asarray([sample.pair.preferred == 1 for sample in samples])
  views = {**margins, 'shorter': length_margins(samples)}
  accuracy = {name: float(np.mean(hits(m, preferred))) for name, m in views.items()}
  own = margins['own']
  result: dict[str, Any] = {
    **accuracy_of(samples, own),
    'second_preferred': float(np.mean(preferred)),
    'margin': float(np.mean(np.abs(own))),
    'accuracy_without_video': accuracy['blank'],
    'accuracy_other_video': accuracy['other'],
    'accuracy_shorter': accuracy['shorter'],
    'calibration': calibration(own, preferred),
  }
  if 'no_narrative' in accuracy:
    result['accuracy_without_narrative'] = accuracy['no_narrative']
  if truth is None:
    return result
  true = true_margins(samples, truth)
  informative = np.isfinite(true) & (true != 0)
  if informative.any():
    better = true[informative] > 0
    result['truth'] = {
      'n': int(informative.sum()),
      'labels': float(np.mean(preferred[informative] == better)),
      **{
        name: float(np.mean(hits(m[informative], better))) for name, m in views.items()
      },
    }
  return result


def margin_table(
  samples: Sequence[PairSample], views: Mapping[str, np.ndarray]
) -> dict[str, list]:
  """Returns the margins of every pair by view, and which answer is preferred."""
  return {
    'id': [sample.pair.example.key for sample in samples],
    'second_preferred': [sample.pair.preferred == 1 for sample in samples],
    **{view: values.tolist() for view, values in views.items()},
  }


def media(
  samples: Sequence[PairSample], views: Mapping[str, np.ndarray], data: DataConfig
) -> Media:
  """Returns the pairs that a model gets most wrong, and histograms of its margins.

  Args:
    views: margins, `[N]`, of the second answer over the first.
    data: where the videos are, and how they are sampled.
  """
  sign = np.asarray([2.0 * sample.pair.preferred - 1 for sample in samples])
  over = {view: sign * values for view, values in views.items()}
  worst = [samples[i] for i in np.argsort(over['own'], kind='stable')[:WORST]]
  rows = [
    (
      sample.pair.example.question,
      sample.pair.answers[sample.pair.preferred],
      sample.pair.answers[1 - sample.pair.preferred],
      float(margin),
    )
    for sample, margin in zip(worst, np.sort(over['own']), strict=False)
  ]
  strips = sinks.film_strips([sample.pair.example.video for sample in worst], data)
  return Media(
    texts={
      'held_out/worst_pairs': sinks.markdown(
        ('question', 'preferred', 'other', 'margin'), rows
      )
    },
    pictures={
      f'held_out/worst_pair_{place}': strip
      for place, strip in enumerate(strips)
      if strip is not None
    },
    histograms={f'held_out/margin_{view}': values for view, values in over.items()},
  )


def calibration(margins: np.ndarray, second: np.ndarray) -> dict[str, Any]:
  """Returns the expected calibration error, and the reliability curve it comes from.

  The model's probability that its choice is the preferred answer is sigma(|margin|), so
  the curve runs from 1/2 to 1 in bins of equal width (Guo et al. 2017).

  Returns:
    ece: mean of |confidence - accuracy| over pairs, bin by bin.
    curve: (confidence, accuracy, pairs) of each bin that has any.
  """
  confidence = 1 / (1 + np.exp(-np.abs(margins)))
  right = hits(margins, second)
  bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
  curve, error = [], 0.0
  for number in np.unique(bins):
    inside = bins == number
    mean, share = float(confidence[inside].mean()), float(right[inside].mean())
    curve.append((mean, share, int(inside.sum())))
    error += abs(mean - share) * float(inside.mean())
  return {'ece': error, 'curve': curve}
