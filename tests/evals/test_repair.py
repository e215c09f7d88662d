"""Repair of planted faults, on answers that can be checked by eye."""

import pytest

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import repair

FACTS = [
  ('red circle', 0, 'moves left'),
  ('red circle', 1, 'stays'),
  ('red circle', 2, 'bounces off the right wall'),
]
SPAN = [['red circle', phase] for phase in range(3)]
TRUTH = Truth(
  {
    'a': {'facts': FACTS, 'span': SPAN, 'phase': -1},
    'b': {'facts': FACTS, 'span': SPAN, 'phase': -1},
    'short': {'facts': FACTS, 'span': [], 'phase': -1},
  }
)
RIGHT = (
  'First the red circle moves left, then it stays, finally it bounces off the right '
  'wall.'
)
FAULTY = (
  'First the red circle moves right, then it moves up, finally it bounces off the left '
  'wall.'
)
ROWS = [
  {'question_id': 'a', 'video_name': '1', 'kind': 'course'},
  {'question_id': 'b', 'video_name': '2', 'kind': 'course'},
  {'question_id': 'short', 'video_name': '2', 'kind': 'count'},
]


def test_faults_count_what_is_stated_right_and_as_the_fault_has_it():
  found = repair.faults(ROWS, [RIGHT, FAULTY, 'Two'], TRUTH)
  assert found['swapped'] == {'facts': 4, 'right': 0.5, 'faulty': 0.5}
  assert found['stays'] == {'facts': 2, 'right': 0.5, 'faulty': 0.5}


def test_a_fact_that_no_answer_speaks_of_is_in_no_share():
  silent = repair.faults(ROWS, ['', 'The red circle vanishes.', 'Two'], TRUTH)
  assert silent['swapped'] == {'facts': 0, 'right': 0, 'faulty': 0}


def test_long_and_short_answers_have_their_own_accuracy():
  result = repair.long_answers(ROWS, [RIGHT, FAULTY, 'Two'], [1.0, 0.0, 1.0], TRUTH)
  assert result['long']['n'] == 2 and result['short']['n'] == 1
  assert result['long']['accuracy'] == 0.5 and result['short']['accuracy'] == 1.0
  assert result['long']['hallucination_rate'] == 0.5  # 3 of 6 claims
  assert result['long']['fact_recall'] == 0.5
  wrong = repair.long_answers(ROWS, [FAULTY, FAULTY, 'Two'], [0.0, 0.0, 1.0], TRUTH)
  square = 1.96**2
  assert wrong['long']['interval'] == pytest.approx((0.0, square / (2 + square)))
  unknown = [{**ROWS[0], 'question_id': '?'}]
  assert repair.long_answers(unknown, [RIGHT], [1.0], TRUTH) == {}


def test_change_is_by_kind_and_by_length():
  changes = repair.change(ROWS, [0.0, 0.0, 1.0], [1.0, 0.0, 1.0], TRUTH)
  assert changes['all']['change'] == pytest.approx(1 / 3)
  assert changes['long']['change'] == changes['course']['change'] == 0.5
  assert changes['short']['change'] == changes['count']['change'] == 0
  low, high = changes['long']['interval']
  assert low <= 0.5 <= high
  assert changes['short']['interval'] is None, 'one video'
  assert set(repair.change(ROWS, [0.0] * 3, [1.0] * 3, None)) == {
    'all', 'course', 'count'
  }  # fmt: skip


def test_an_upside_down_video_swaps_up_and_down_too():
  facts = [('red circle', 0, 'moves up'), ('red circle', 1, 'moves left')]
  span = [['red circle', 0], ['red circle', 1]]
  truth = Truth({'a': {'facts': facts, 'span': span, 'phase': -1}})
  answer = 'First the red circle moves down, then it moves left.'
  mirrored = repair.faults(ROWS[:1], [answer], truth, 'horizontal')['swapped']
  assert mirrored == {'facts': 1, 'right': 1.0, 'faulty': 0.0}
  turned = repair.faults(ROWS[:1], [answer], truth, 'both')['swapped']
  assert turned == {'facts': 2, 'right': 0.5, 'faulty': 0.5}
