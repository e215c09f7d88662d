import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.objectives import policy


def test_policy_loss_clips_what_went_too_far_and_only_that():
  old = jnp.zeros((1, 4))
  logprob = jnp.log(jnp.array([[1.5, 0.5, 1.5, 0.5]]))
  advantages = jnp.array([[1.0, -1.0, -1.0, 1.0]])
  loss, stats = policy.policy_loss(logprob, old, advantages, 0.2)
  # Gains stop at 1.2 and at 0.8; losses are not clipped.
  assert float(loss) == pytest.approx(np.mean([-1.2, 0.8, 1.5, -0.5]))
  assert float(stats['clip_share']) == 0.5
  gradient = jax.grad(lambda x: policy.policy_loss(x, old, advantages, 0.2)[0])(logprob)
  np.testing.assert_array_equal(
    np.asarray(gradient[0]) != 0, [False, False, True, True]
  )


def test_policy_gradient_at_ratio_one_is_the_advantage():
  old = jnp.array([[-1.0, -2.0]])
  advantages = jnp.array([[3.0, -1.0]])
  gradient = jax.grad(lambda x: policy.policy_loss(x, old, advantages, 0.2)[0])(old)
  np.testing.assert_allclose(gradient, -advantages / 2)


def test_pads_dilute_the_mean_unless_masked():
  old = jnp.zeros((1, 4))
  logprob = jnp.array([[0.1, 0.1, 0.0, 0.0]])
  advantages = jnp.array([[1.0, 1.0, 5.0, 5.0]])
  mask = jnp.array([[True, True, False, False]])
  plain, _ = policy.policy_loss(logprob, old, advantages, 0.2)
  masked, _ = policy.policy_loss(logprob, old, advantages, 0.2, mask)
  assert float(masked) == pytest.approx(-np.exp(0.1), rel=1e-6)
  assert float(plain) == pytest.approx(-(2 * np.exp(0.1) + 10) / 4, rel=1e-6)


def test_value_loss_stops_at_the_radius():
  old = jnp.array([[0.0, 0.0, 0.0]])
  values = jnp.array([[0.1, 0.5, -0.5]])
  target = jnp.array([[1.0, 1.0, 1.0]])
  loss, stats = policy.value_loss(values, old, target, 0.2)
  # Past the radius towards the target: the clipped error counts, without a gradient.
  assert float(loss) == pytest.approx(0.5 * np.mean([0.81, 0.64, 2.25]))
  gradient = jax.grad(lambda v: policy.value_loss(v, old, target, 0.2)[0])(values)
  np.testing.assert_array_equal(np.asarray(gradient[0]) != 0, [True, False, True])
  assert float(stats['clip_share']) == pytest.approx(1 / 3)


def test_rounding_is_no_clip():
  """V_old + (V - V_old) is not V to the last bit."""
  rng = np.random.default_rng(0)
  normal = lambda: jnp.asarray(rng.normal(size=(1, 500)), jnp.float32)
  _, stats = jax.jit(policy.value_loss)(normal(), 0.1 * normal(), normal(), 9.0)
  assert float(stats['clip_share']) == 0


def test_approx_kl_is_zero_at_the_old_policy_and_positive_elsewhere():
  old = jnp.array([[-1.0, -2.0, -3.0]])
  mask = jnp.array([[True, True, False]])
  assert float(policy.approx_kl(old, old)) == 0
  logprob = old + jnp.log(jnp.array([[2.0, 0.5, 9.0]]))
  # (ρ - 1) - log ρ at 2 and at 1/2: 1 - log 2 and -1/2 + log 2.
  assert float(policy.approx_kl(logprob, old, mask)) == pytest.approx(0.25)


def test_approx_kl_estimates_the_divergence_from_samples_of_the_old_policy():
  old, new = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.4, 0.4, 0.2]))
  tokens = jax.random.categorical(jax.random.key(0), old, shape=(1, 40000))
  exact = float(jnp.sum(jnp.exp(old) * (old - new)))
  estimate = float(policy.approx_kl(new[tokens], old[tokens]))
  assert estimate == pytest.approx(exact, rel=0.03)
