"""Agreement of judges, and what an order is worth, against values by hand."""

import pytest

from vlm_rlaif_jax.reports.page import judging


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
