"""Numbers from hand-made verdicts, malformed ones included."""

import numpy as np
import pytest

from vlm_rlaif_jax.evals.judges import scores
from vlm_rlaif_jax.evals.records import Case, Verdict

VIDEOS = {'a': 'v1', 'b': 'v1', 'c': 'v2', 'd': 'v2'}
BAD = Verdict(error='no verdict in the reply')


def cases(criterion='answer', keys='abcd'):
  return [
    Case(key=key, criterion=criterion, questions=(), reference='', predictions=())
    for key in keys
  ]


def test_unscored_cases_stand_in_the_denominator_and_are_not_zero():
  verdicts = [Verdict(4.0, True), Verdict(1.0, False), Verdict(5.0, True), BAD]
  numbers = scores.metrics(scores.scores_of(cases(), verdicts), VIDEOS)
  accuracy, score = numbers['accuracy'], numbers['score']
  assert accuracy['value'] == pytest.approx(2 / 3)
  assert score['value'] == pytest.approx(10 / 3)
  assert (accuracy['n'], accuracy['unscored']) == (3, 1)
  assert (accuracy['low'], accuracy['high']) == (2 / 4, 3 / 4)
  assert (score['low'], score['high']) == (10 / 4, 15 / 4)


def test_nothing_scored_has_no_number():
  numbers = scores.metrics(scores.scores_of(cases('detail'), [BAD] * 4), VIDEOS)
  assert numbers['detail'] == {
    'value': None, 'interval': None, 'n': 0, 'unscored': 4, 'low': 0.0, 'high': 5.0,
  }  # fmt: skip


def test_the_interval_resamples_whole_videos():
  """Against a bootstrap that is written out."""
  values = [5.0, 4.0, 1.0, 0.0]
  verdicts = [Verdict(value) for value in values]
  numbers = scores.metrics(scores.scores_of(cases('detail'), verdicts), VIDEOS)
  rng = np.random.default_rng(1)
  means = []
  for _ in range(4000):
    drawn = [values[:2] if rng.random() < 0.5 else values[2:] for _ in range(2)]
    means.append(np.mean(np.concatenate(drawn)))
  expected = np.quantile(means, [0.025, 0.975])
  assert numbers['detail']['interval'] == pytest.approx(expected)


def test_changes_are_paired_item_by_item():
  def of(*values):
    given = [BAD if v is None else Verdict(v) for v in values]
    return scores.scores_of(cases('detail'), given)

  models = {'sft': of(1, 2, None, 3), 'rlaif': of(2, 2, 5, None)}
  result = scores.changes(models, VIDEOS)
  assert set(result) == {'sft'}
  assert result['sft']['detail']['change'] == pytest.approx((1 + 0) / 2)
  assert result['sft']['detail']['n'] == 2
  assert result['sft']['detail']['interval'] is None, 'both are about one video'
  assert scores.changes({'sft': of(1, 1, 1, 1)}, VIDEOS) == {}
  nothing = {'sft': of(1, None, 1, None), 'rlaif': of(None, 1, None, 1)}
  assert scores.changes(nothing, VIDEOS) == {'sft': {}}
