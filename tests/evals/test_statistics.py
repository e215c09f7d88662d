import math

import numpy as np
import pytest

from vlm_rlaif_jax.evals import statistics


def test_the_interval_covers_the_mean_and_knows_clusters(rng):
  values = rng.random(400)
  low, high = statistics.clustered_interval(values, [str(i) for i in range(400)])
  assert low < values.mean() < high
  assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
  # Copies of the same ten videos carry no more information than the ten.
  ten = np.repeat(values[:10], 40)
  wide = statistics.clustered_interval(ten, [str(i // 40) for i in range(400)])
  assert wide[1] - wide[0] > 3 * (high - low)


def test_paired_changes_cancel_what_both_share(rng):
  before, steps = rng.random(300), 0.1 + 0.001 * rng.random(300)
  low, high = statistics.paired_interval(
    list(before), list(before + steps), [str(i) for i in range(300)]
  )
  assert low == pytest.approx(0.1, abs=1e-3) and high == pytest.approx(0.1, abs=1e-3)


def test_one_video_gives_no_interval():
  """Six questions about it that changed alike say nothing of other videos."""
  before, after = [0.0] * 6, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
  assert statistics.paired_interval(before, after, ['a'] * 6) is None
  assert statistics.clustered_interval(after, ['a'] * 6, (0, 1)) is None
  assert statistics.metric([3.0] * 6, ['a'] * 6, best=5.0)['interval'] is None
  assert statistics.metric([3.0, 4.0], ['a'] * 2, best=5.0)['interval'] is None


def test_videos_that_are_alike_leave_room_for_others_by_their_number():
  """Of three that all rose, a share of others could be otherwise, or even fall."""
  share = 1.96**2 / (3 + 1.96**2)
  rise = statistics.paired_interval([0.0] * 3, [1.0] * 3, list('abc'))
  assert rise == (pytest.approx(1 - 2 * share), 1.0)
  none = statistics.paired_interval([1.0] * 3, [1.0] * 3, list('abc'))
  assert none == pytest.approx((-share, share))
  # By video, not by question: each has one that rose and one that did not.
  half = statistics.paired_interval([0.0] * 6, [1.0, 0.0] * 3, list('aabbcc'))
  assert half == pytest.approx((0.5 - 1.5 * share, 0.5 + 0.5 * share))
  assert statistics.share_interval([1.0, 0.0] * 3, list('aabbcc')) == pytest.approx(
    (0.5 - 0.5 * share, 0.5 + 0.5 * share)
  )
  scores = statistics.paired_interval([1.0] * 3, [2.0] * 3, list('abc'), best=5.0)
  assert scores == pytest.approx((1 - 6 * share, 1 + 4 * share))
  words = statistics.paired_interval([4.0] * 3, [4.0] * 3, list('abc'), best=math.inf)
  assert words is None, 'no bound says how long another answer could be'


def test_a_share_of_all_or_none_has_an_interval_by_the_number_of_videos():
  """Resampling ones gives ones, so four of four would be 100 % for certain."""
  few, many = ('a', 'b', 'c', 'd'), [str(i) for i in range(400)]
  low, high = statistics.share_interval([1.0] * 4, few)
  assert (low, high) == (pytest.approx(0.5101, abs=1e-4), 1.0)
  assert statistics.share_interval([1.0] * 400, many)[0] > 0.99
  assert statistics.share_interval([0.0] * 4, few)[1] == pytest.approx(1 - low)
  low, high = statistics.share_interval([1.0, 1.0, 1.0, 0.0, 0.0], ['a'] * 5)
  assert low < 0.15 and high > 0.9  # five questions about one video are one trial
  some = [1.0, 0.0] * 200
  assert statistics.share_interval(some, many) == statistics.clustered_interval(
    some, many
  )


def test_the_standard_error_is_that_of_independent_values_and_knows_clusters(rng):
  values = rng.normal(size=50)
  alone = statistics.standard_error(values, [str(i) for i in range(50)])
  assert alone == pytest.approx(np.std(values, ddof=1) / np.sqrt(50))
  # Copies of a video add nothing; the bootstrap over videos says the same.
  copies, videos = np.repeat(values, 6), [str(i // 6) for i in range(300)]
  assert statistics.standard_error(copies, videos) == pytest.approx(alone)
  groups = rng.normal(size=40).repeat(5) + rng.normal(size=200)
  clusters = [str(i // 5) for i in range(200)]
  low, high = statistics.clustered_interval(groups, clusters)
  error = statistics.standard_error(groups, clusters)
  assert error == pytest.approx((high - low) / (2 * 1.96), rel=0.1)
  assert statistics.standard_error([1.0, 2.0], ['a', 'a']) is None
