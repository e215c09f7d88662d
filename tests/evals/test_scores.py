"""Scores of answers and their intervals, on cases that can be checked by eye."""

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import language
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, qa, statistics
from vlm_rlaif_jax.settings.build import UserError

FACTS = [('red circle', 0, 'moves left'), ('red circle', 1, 'stays')]
TRUTH = Truth(
  {
    'long': {
      'facts': FACTS,
      'span': [['red circle', 0], ['red circle', 1]],
      'phase': -1,
    },
    'short': {'facts': FACTS, 'span': [], 'phase': -1},
  }
)


@pytest.mark.parametrize(
  'prediction, right',
  [('Yes', True), ('yes.', True), ('The Yes', True), ('No', False), ('', False)],
)
def test_short_answers_match_word_for_word(prediction, right):
  row = {'question_id': 'short', 'answer': 'Yes'}
  assert qa.is_right(row, prediction, TRUTH) == right
  assert qa.is_right(row, prediction, None) == right


@pytest.mark.parametrize(
  'prediction, right',
  [
    ('First the red circle moves left, then it stays.', True),
    ('then the red circle stays. first it moves left', True),
    ('First the red circle moves left.', False),  # incomplete
    ('First the red circle moves left, then it moves up.', False),  # invented
    ('First the red circle moves left, then it stays. Hello.', False),  # unreadable
  ],
)
def test_long_answers_are_scored_by_their_claims(prediction, right):
  row = {'question_id': 'long', 'answer': 'unused'}
  assert qa.is_right(row, prediction, TRUTH) == right


def test_rates_count_claims_over_all_descriptions():
  scores = [
    language.Score(right=3, invented=1, recalled=2, required=4),
    language.Score(right=1, invented=0, recalled=1, required=2),
  ]
  found = descriptions.rates(scores)
  assert found['hallucination_rate'] == pytest.approx(1 / 5)
  assert found['fact_precision'] == pytest.approx(4 / 5)
  assert found['fact_recall'] == pytest.approx(3 / 6)
  assert descriptions.rates([])['hallucination_rate'] == 0.0


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
  before = rng.random(300)
  low, high = statistics.paired_interval(
    list(before), list(before + 0.1), [str(i) for i in range(300)]
  )
  assert low == pytest.approx(0.1) and high == pytest.approx(0.1)


@pytest.mark.parametrize('text', ['[1]', '{"q": {"facts": []}}', '{"q"', '3'])
def test_a_file_that_is_no_truth(tmp_path, text):
  path = tmp_path / 'truth.json'
  assert Truth.load(path) is None
  path.write_text(text)
  with pytest.raises(UserError, match=r'truth\.json: expected \{id:') as error:
    Truth.load(path)
  assert '\n' not in str(error.value)
