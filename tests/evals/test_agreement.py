"""Agreement of two judges, against hand computations and SciPy."""

import numpy as np
import pytest
import scipy.stats

from vlm_rlaif_jax.evals import agreement
from vlm_rlaif_jax.evals.records import Verdict


def table(counts):
  """Returns two lists of ratings that have a table of counts."""
  pairs = [
    (i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)
  ]
  return [list(side) for side in zip(*pairs, strict=True)]


def test_kappa_is_the_textbooks():
  """The grants example: 20 and 15 of 50 agree, by chance 0.3 + 0.2."""
  first, second = table([[20, 5], [10, 15]])
  assert agreement.kappa(first, second) == pytest.approx((0.7 - 0.5) / 0.5)


def test_weighted_kappa_is_that_of_a_table():
  """Against the definition by tables of counts and of squared distances."""
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 9, (6, 6))
  observed = counts / counts.sum()
  expected = np.outer(observed.sum(1), observed.sum(0))
  weights = np.square(np.subtract.outer(np.arange(6), np.arange(6)))
  direct = 1 - (weights * observed).sum() / (weights * expected).sum()
  assert agreement.weighted_kappa(*table(counts)) == pytest.approx(direct)


def test_agreement_of_equal_and_of_opposite_judges():
  ratings = [0, 1, 1, 0, 1, 0]
  assert agreement.kappa(ratings, ratings) == 1.0
  assert agreement.kappa(ratings, [1 - r for r in ratings]) == -1.0
  assert agreement.kappa([1, 1, 1], [1, 1, 1]) is None, 'chance alone explains it'
  assert agreement.kappa([1, 1, 1, 1], [1, 0, 1, 0]) == 0.0
  assert agreement.kappa([], []) is None


def test_kappa_is_that_of_scikit_learn():
  metrics = pytest.importorskip('sklearn.metrics', reason='scikit-learn is not here')
  first, second = np.random.default_rng(1).integers(0, 6, (2, 200))
  score = metrics.cohen_kappa_score
  assert agreement.kappa(first, second) == pytest.approx(score(first, second))
  quadratic = score(first, second, weights='quadratic')
  assert agreement.weighted_kappa(first, second) == pytest.approx(quadratic)


def test_spearman_is_that_of_scipy_with_ties():
  rng = np.random.default_rng(0)
  first = rng.integers(0, 6, 60) / 2
  second = np.round(first + rng.normal(0, 1, 60), 1)
  expected = scipy.stats.spearmanr(first, second).statistic
  assert agreement.spearman(first, second) == pytest.approx(expected)
  assert agreement.spearman([1, 1], [1, 2]) is None


def test_unscored_cases_are_counted_and_not_compared():
  bad = Verdict(error='no verdict')
  first = [Verdict(5.0, True), Verdict(0.0, False), bad, Verdict(4.0, True)]
  second = [Verdict(4.0, True), Verdict(1.0, True), Verdict(1.0, False), bad]
  result = agreement.of_criterion(first, second)
  assert (result['cases'], result['n'], result['unscored']) == (4, 2, [1, 1])
  assert result['equal'] == 0.5 and result['means'] == [2.5, 2.5]
  assert result['difference'] == 0.0
  scores = agreement.of_criterion([Verdict(3.0), bad], [Verdict(3.0), Verdict(1.0)])
  assert scores['equal'] == 1.0 and 'kappa' not in scores
  assert 'equal' not in agreement.of_criterion([bad], [bad])


def verdicts(rights):
  return {
    (f'q{i}', 'answer'): Verdict(5.0 * right, bool(right)) if right >= 0 else
    Verdict(error='no verdict')
    for i, right in enumerate(rights)
  }  # fmt: skip


VIDEOS = {f'q{i}': f'v{i // 2}' for i in range(40)}


def test_the_conclusion_depends_on_the_judge():
  """One judge finds that twenty answers became right, the other that none did."""
  before = verdicts([0] * 40)
  kind, strict = verdicts([1] * 20 + [0] * 20), verdicts([0] * 40)
  result = agreement.of_benchmark(
    {'sft': (before, before), 'rlaif': (kind, strict)}, VIDEOS
  )
  change = result['conclusions']['sft']['accuracy']
  assert [one['change'] for one in change['changes']] == [0.5, 0.0]
  assert [one['direction'] for one in change['changes']] == ['up', 'undecided']
  assert change['difference'] == -0.5 and change['n'] == 40
  assert change['interval'][1] < 0 and not change['same']
  assert result['criteria']['answer']['n'] == 80, 'of both models'


def test_two_judges_that_agree_conclude_the_same():
  rng = np.random.default_rng(0)
  before, after = (verdicts(rng.integers(0, 2, 40)) for _ in range(2))
  result = agreement.of_benchmark(
    {'init': (before, before), 'rlaif': (after, after)}, VIDEOS
  )
  assert set(result['conclusions']) == {'init'}
  for change in result['conclusions']['init'].values():
    assert change['same'] and change['difference'] == 0.0
  assert result['criteria']['answer']['kappa'] == 1.0


def test_changes_are_over_what_both_judges_scored():
  before = verdicts([0] * 10)
  first, second = verdicts([1] * 10), verdicts([1] * 5 + [-1] * 5)
  result = agreement.of_benchmark(
    {'sft': (before, before), 'rlaif': (first, second)}, VIDEOS
  )
  change = result['conclusions']['sft']['accuracy']
  assert change['n'] == 5 and change['same']
  assert result['criteria']['answer']['unscored'] == [0, 5]


def test_kappa_of_a_worked_example():
  """Cohen (1960): of 50, both yes 20, both no 15, only the first 5, the second 10."""
  pairs = [(1, 1)] * 20 + [(0, 0)] * 15 + [(1, 0)] * 5 + [(0, 1)] * 10
  first, second = zip(*pairs, strict=True)
  assert agreement.kappa(first, second) == pytest.approx(0.4)
  assert agreement.kappa([1] * 3, [1] * 3) is None


def test_few_videos_decide_nothing():
  few = agreement._compared([[1.0, 1.0], [1.0, 1.0]], ['a', 'b'], 1.0)
  assert [side['direction'] for side in few['changes']] == ['undecided'] * 2
  many = agreement._compared([[1.0] * 6] * 2, list('abcdef'), 1.0)
  assert [side['direction'] for side in many['changes']] == ['up'] * 2
  one = agreement._compared([[1.0] * 6] * 2, ['a'] * 6, 1.0)
  assert [side['direction'] for side in one['changes']] == ['undecided'] * 2
  assert [one['interval'], *(side['interval'] for side in one['changes'])] == [None] * 3
