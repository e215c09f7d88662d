"""Ticks are round and enclose the values; long lines are thinned."""

import itertools

import pytest

from vlm_rlaif_jax.reports.page import axes, plots
from vlm_rlaif_jax.reports.page.axes import Series


@pytest.mark.parametrize(
  ('low', 'high', 'ticks'),
  [
    (0, 10, [0, 2.5, 5, 7.5, 10]),
    (0.13, 0.87, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (-1e-9, 1, [0, 0.25, 0.5, 0.75, 1]),  # not from -0.25
    (3, 3, [1.5, 2.5, 3.5, 4.5]),
  ],
)
def test_ticks_are_round(low, high, ticks):
  values = axes.ticks(low, high)
  assert values[0] <= low + 0.01 and values[-1] >= high - 0.01
  steps = {round(b - a, 9) for a, b in itertools.pairwise(values)}
  assert len(steps) == 1
  if low != high:
    assert values == pytest.approx(ticks)


def test_a_long_line_is_thinned_by_means():
  points = [(float(i), float(i % 2)) for i in range(3000)]
  thin = axes.thin(points, 300)
  assert len(thin) == 300 and {y for _, y in thin} == {0.5}
  assert thin[-1][0] == 2999
  assert axes.thin(points[:5]) == points[:5]


def test_a_plot_says_in_words_what_it_shows():
  drawing = plots.lines('Reward', [Series('a', [(0, 1.0), (8, 2.5)])], 'step')
  assert drawing is not None
  assert 'aria-label="Reward. a: from 1 at 0 to 2.5 at step 8"' in drawing
  assert plots.lines('Reward', [Series('a', [])], 'step') is None
