"""Win rates in both orders, against hand-made preferences."""

import math

import pytest

from vlm_rlaif_jax.evals.judges import wins
from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.records import Case, Verdict

VIDEOS = {key: f'v{key}' for key in 'abcdef'}
BAD = Verdict(error='no verdict')


def cases(**answers):
  return {
    key: Case(
      key=key, criterion='correctness', questions=('Who?',), reference='yes',
      predictions=(answer,),
    )
    for key, answer in answers.items()
  }  # fmt: skip


def pair(first, second):
  """Returns verdicts on (control, rlaif) and on (rlaif, control), by their winners."""
  score = {'first': 5.0, 'second': 0.0, 'tie': 2.5}
  return Verdict(score[first]), Verdict(score[second])


def test_points_are_of_both_orders():
  pairs = {
    'a': pair('second', 'first'),  # rlaif both times
    'b': pair('first', 'second'),  # the control both times
    'c': pair('first', 'first'),  # whatever stands first
    'd': pair('tie', 'tie'),
    'e': pair('tie', 'first'),
    'f': (BAD, Verdict(5.0)),
  }
  result = wins.win_rate(pairs, VIDEOS)
  assert result['value'] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.75) / 5)
  assert (result['wins'], result['ties'], result['losses']) == (2, 2, 1)
  assert (result['n'], result['unscored']) == (5, 1)
  assert result['order_agreement'] == pytest.approx(3 / 5)
  low, high = result['interval']
  assert 0 <= low < result['value'] < high <= 1


def test_a_judge_that_prefers_the_first_answer_finds_no_winner():
  pairs = {key: pair('first', 'first') for key in 'abcd'}
  result = wins.win_rate(pairs, VIDEOS)
  assert (result['value'], result['ties'], result['order_agreement']) == (0.5, 4, 0.0)


def test_equal_answers_are_ties_that_are_not_judged():
  class Counting(MatchJudge):
    asked = 0

    def verdicts(self, cases):
      self.asked += len(cases)
      return super().verdicts(cases)

  judge = Counting()
  before = cases(a='no', b='yes', c='no', d='x')
  after = cases(a='yes', b='no', c='no', e='yes')
  pairs = wins.judge_pairs(judge, before, after)
  assert set(pairs) == {'a', 'b', 'c'} and judge.asked == 4
  result = wins.win_rate(pairs, VIDEOS)
  assert (result['wins'], result['ties'], result['losses']) == (1, 1, 1)
  assert result['order_agreement'] == 1.0, 'of those that were judged'
  rows = wins.rows_of(pairs)
  assert [row['order'] for row in rows[:2]] == ['control first', 'rlaif first']
  assert [row['score'] for row in rows[:2]] == [0.0, 5.0]


def test_nothing_scored_has_no_rate():
  result = wins.win_rate({'a': (BAD, BAD)}, VIDEOS)
  assert (result['value'], result['n'], result['unscored']) == (None, 0, 1)
  assert not any(math.isnan(v) for v in result.values() if isinstance(v, float))
