"""Agreement of judges, and what an order is worth, against values by hand."""

import re

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.reports.page import judging, run_files


def test_what_the_first_place_is_worth():
  """The answers cancel over both orders: what is left is the place."""
  rows = [
    {'forward': 1.0 + 0.5, 'swapped': -1.0 + 0.5},
    {'forward': -3.0 + 0.5, 'swapped': 3.0 + 0.5},
    {'margin': 1.0},
  ]
  assert judging.order_bias(rows) == {'first': 0.5, 'bias': pytest.approx(0.5)}
  assert judging.order_bias(rows[2:]) == {}


def test_the_reliability_of_a_judge():
  """All pairs that truth decides; a sure judge that is always right has no error."""
  sure = [{'margin': m, 'truth': [m, 0.0]} for m in (50.0, -50.0)]
  ties = [{'margin': 50.0, 'truth': [1.0, 1.0]}, {'margin': 50.0}]
  error, curve = judging.judge_curve([*sure, *ties])
  assert error == pytest.approx(0) and curve == [(1.0, 1.0, 2)]
  wrong, _ = judging.judge_curve([{'margin': 50.0, 'truth': [0.0, 1.0]}])
  assert wrong == pytest.approx(1)
  assert judging.judge_curve(ties) is None


def test_a_margin_of_nothing_is_half_a_hit(tmp_path):
  """As in the summaries; a model that gives all the same was 0 % right here."""
  folder = run_fixture.run(tmp_path / 'tiny')
  margins = {'own': [2.0, -1.0, 0.0], 'blank': [0.0, 0.0, 0.0]}
  margins['second_preferred'] = [True, True, False]
  run_fixture.dump(folder / 'reward' / 'margins.json', margins)
  (run,) = run_files.find([folder])
  text = re.sub('<.*?>', ' ', str(judging._reward_margins(run)))
  assert 'without the video 50.0 %' in text
  assert 'as labeled (1)' in text and 'against the label (1)' in text
  assert 'both alike (1)' in text
  rows = [
    {'margin': m, 'truth': [1.0, 0.0], 'answers': ['a', 'b']} for m in (1.0, -1.0, 0.0)
  ]
  (plot,) = judging._margin_plots(run, rows)
  text = re.sub('<.*?>', ' ', str(plot))
  assert 'right (1)' in text and 'wrong (1)' in text and 'undecided (1)' in text
