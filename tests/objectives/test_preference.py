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


@pytest.mark.parametrize('preferred', [(0, 0), (0, 1), (1, 1)])
def test_a_tie_is_half_right_whatever_is_preferred(preferred):
  zero = jnp.zeros(2)
  right = preference.pair_accuracy(zero, zero, jnp.array(preferred), ONES)
  assert float(right) == 0.5


@pytest.mark.parametrize('preferred', [0, 1])
def test_scores_that_are_no_numbers_are_never_right(preferred):
  first, second = jnp.array([jnp.nan, 0.0]), jnp.array([0.0, jnp.nan])
  labels = jnp.full(2, preferred)
  assert float(preference.pair_accuracy(first, second, labels, ONES)) == 0.0


def test_order_margin_cancels_a_preference_for_a_position():
  truth, bias = np.array([1.0, -0.5]), 2.0
  forward = jnp.asarray(truth + bias)  # A is answer 1
  swapped = jnp.asarray(-truth + bias)  # A is answer 2
  margin, agree = preference.order_margin(forward, swapped)
  np.testing.assert_allclose(margin, truth)
  np.testing.assert_array_equal(agree, [False, False])
  _, agree = preference.order_margin(jnp.asarray(truth), jnp.asarray(-truth))
  np.testing.assert_array_equal(agree, [True, True])


def test_a_tie_in_one_order_agrees_with_no_preference_in_the_other():
  forward, swapped = np.array([0.0, 0.0, 1.0, np.nan]), np.array([0.0, 1.0, 0.0, -1.0])
  _, agree = preference.order_margin(forward, swapped)
  np.testing.assert_array_equal(agree, [True, False, False, False])
