import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.objectives import likelihood


def test_log_probabilities_of_a_known_distribution():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  np.testing.assert_allclose(
    likelihood.log_probabilities(logits, jnp.array([1])), np.log([0.25]), rtol=1e-6
  )
  assert float(likelihood.entropy(logits)[0]) == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize('chunk', [0, 3, 4, 100])
def test_chunks_change_neither_value_nor_gradient(rng, chunk):
  hidden = jnp.asarray(rng.normal(size=(2, 7, 5)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(5, 11)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, 11, (2, 7)))

  def total(head, chunk):
    one = lambda h, t: likelihood.log_probabilities(h @ head, t)
    return likelihood.over_chunks(one, hidden, tokens, chunk).sum()

  value, gradient = jax.value_and_grad(total)(head, chunk)
  expected, slope = jax.value_and_grad(total)(head, 0)
  assert float(value) == pytest.approx(float(expected), rel=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


def test_cross_entropy_averages_over_targets_and_survives_having_none():
  logp = jnp.array([[-1.0, -2.0, -3.0]])
  target = jnp.array([[False, True, True]])
  assert float(likelihood.cross_entropy(logp, target)) == 2.5
  assert float(likelihood.cross_entropy(logp, jnp.zeros_like(target))) == 0.0
