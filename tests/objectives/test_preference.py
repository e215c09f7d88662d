import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.objectives import preference

ONES = jnp.ones(2)


def test_bradley_terry_loss_and_its_centering_term():
  first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
  preferred = jnp.array([0, 1])
  loss = preference.bradley_terry_loss(first, second, preferred, 1e-3, ONES)
  expected = np.mean(np.log1p(np.exp([-1.0, -2.0]))) + 1e-3 * abs(np.mean([1.0, 2.0]))
  assert float(loss) == pytest.approx(expected)


def test_blank_pairs_count_for_nothing():
  first, second = jnp.array([1.0, 100.0]), jnp.array([0.0, -100.0])
  weight = jnp.array([1.0, 0.0])
  loss = preference.bradley_terry_loss(first, second, jnp.array([0, 1]), 0.0, weight)
  assert float(loss) == pytest.approx(np.log1p(np.exp(-1.0)))
  right = preference.pair_accuracy(first, second, jnp.array([0, 1]), weight)
  assert float(right) == 1.0


def test_equal_scores_count_for_the_second_answer():
  zero = jnp.zeros(2)
  assert float(preference.pair_accuracy(zero, zero, jnp.array([0, 1]), ONES)) == 0.5


def test_order_margin_cancels_a_preference_for_a_position():
  truth, bias = np.array([1.0, -0.5]), 2.0
  forward = jnp.asarray(truth + bias)  # A is answer 1
  swapped = jnp.asarray(-truth + bias)  # A is answer 2
  margin, agree = preference.order_margin(forward, swapped)
  np.testing.assert_allclose(margin, truth)
  np.testing.assert_array_equal(agree, [False, False])
  _, agree = preference.order_margin(jnp.asarray(truth), jnp.asarray(-truth))
  np.testing.assert_array_equal(agree, [True, True])
