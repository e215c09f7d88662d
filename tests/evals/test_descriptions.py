import pytest

from vlm_rlaif_jax.data.world.claims import Score
from vlm_rlaif_jax.evals import descriptions


def test_rates_count_claims_over_all_descriptions():
  scores = [
    Score(right=3, invented=1, recalled=2, required=4),
    Score(right=1, invented=0, recalled=1, required=2),
  ]
  rates = descriptions.rates(scores)
  assert rates['hallucination_rate'] == pytest.approx(1 / 5)
  assert rates['fact_precision'] == pytest.approx(4 / 5)
  assert rates['fact_recall'] == pytest.approx(3 / 6)
  assert descriptions.rates([])['hallucination_rate'] == 0.0
