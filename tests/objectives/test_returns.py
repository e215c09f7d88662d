"""Golden values of the reference, computed in float64, and a plain Python loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.objectives import returns

LOGPROB = jnp.tile(jnp.array([-1.0, -0.5, -0.25]), (8, 1))
REFERENCE = jnp.tile(jnp.array([-1.2, -0.4, -0.25]), (8, 1))
VALUES = jnp.tile(jnp.array([0.1, 0.2, 0.3]), (8, 1))
MASK = jnp.ones((8, 3), bool)


def shaped():
  """Row b has terminal reward b / 2 - 1, and a length term of -10 x 0.2."""
  terminal = 0.5 * jnp.arange(8) - 1 - 10 * 0.2
  kl = returns.kl_estimate(LOGPROB, REFERENCE, 'k1_clamped')
  return -0.1 * kl + returns.place_terminal(terminal, MASK, 'last_index')


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('k1_clamped', (0.2, 0.0, 0.0)),
    ('k1', (0.2, -0.1, 0.0)),
    ('k3', (0.01873075, 0.00517092, 0.0)),
  ],
)
def test_kl_estimators(kind, expected):
  kl = returns.kl_estimate(LOGPROB, REFERENCE, kind)
  np.testing.assert_allclose(kl[0], expected, atol=1e-7)


def test_shaped_rewards():
  np.testing.assert_allclose(shaped()[0], (-0.02, 0, -3.0), rtol=1e-6)
  np.testing.assert_allclose(shaped()[7], (-0.02, 0, 0.5), rtol=1e-6)


def test_undiscounted_advantages_and_returns():
  advantages, target = returns.gae(10 * shaped(), VALUES, 1.0, 1.0)
  np.testing.assert_allclose(advantages[0], (-30.3, -30.2, -30.3), rtol=1e-6)
  np.testing.assert_allclose(advantages[7], (4.7, 4.8, 4.7), rtol=1e-6)
  np.testing.assert_allclose(target[0], (-30.2, -30.0, -30.0), rtol=1e-6)
  assert float(advantages.mean()) == pytest.approx(-12.766666667, rel=1e-6)
  assert float(advantages.std()) == pytest.approx(11.456536223, rel=1e-6)
  whitened = returns.whiten(advantages)
  np.testing.assert_allclose(
    whitened[0], (-1.53042185, -1.5216932, -1.53042185), rtol=1e-6
  )
  np.testing.assert_allclose(
    whitened[7], (1.52460275, 1.53333139, 1.52460275), rtol=1e-6
  )


def test_discounted_returns():
  advantages, target = returns.gae(10 * shaped(), VALUES, 0.99, 0.95)
  np.testing.assert_allclose(target[0], (-26.712341075, -28.20015, -30.0), rtol=1e-6)
  np.testing.assert_allclose(target[7], (4.246567675, 4.71735, 5.0), rtol=1e-6)
  np.testing.assert_allclose(
    returns.whiten(advantages)[0],
    (-1.366870637, -1.513637692, -1.689247858),
    rtol=1e-6,
  )


def test_whiten_without_recentering():
  table = jnp.arange(16.0).reshape(8, 2)
  np.testing.assert_allclose(
    returns.whiten(table, recenter=False)[0], (5.873021603, 6.089951992), rtol=1e-6
  )


@pytest.mark.parametrize(('scope', 'groups'), [('batch', 1), ('device', 4), ('row', 8)])
def test_whiten_scopes(rng, scope, groups):
  x = jnp.asarray(rng.normal(size=(8, 6)))
  whitened = np.asarray(returns.whiten(x, scope=scope, devices=4)).reshape(groups, -1)
  np.testing.assert_allclose(whitened.mean(1), 0, atol=1e-6)
  np.testing.assert_allclose(whitened.std(1), 1, rtol=1e-5)


def test_whiten_ignores_pads(rng):
  x = rng.normal(size=(4, 5)).astype(np.float32)
  mask = rng.random((4, 5)) < 0.6
  whitened = np.asarray(returns.whiten(jnp.asarray(x), jnp.asarray(mask)))
  expected = (x - x[mask].mean()) / x[mask].std()
  np.testing.assert_allclose(whitened[mask], expected[mask], rtol=1e-5)
  assert not whitened[~mask].any()


def plain_gae(rewards, values, gamma, lam, length):
  """The recursion as it is written, for one row of `length` real tokens."""
  advantages, later = [0.0] * len(rewards), 0.0
  for t in reversed(range(length)):
    following = values[t + 1] if t + 1 < length else 0.0
    delta = rewards[t] + gamma * following - values[t]
    later = delta + gamma * lam * later
    advantages[t] = later
  return advantages


@pytest.mark.parametrize('masked', [False, True])
def test_gae_equals_a_plain_loop(rng, masked):
  rewards, values = rng.normal(size=(2, 6, 9)).astype(np.float32)
  lengths = rng.integers(1, 10, 6)
  mask = np.arange(9)[None] < lengths[:, None]
  got, target = returns.gae(
    jnp.asarray(rewards), jnp.asarray(values), 0.97, 0.9, mask if masked else None
  )
  for row in range(6):
    length = int(lengths[row]) if masked else 9
    expected = plain_gae(rewards[row], values[row], 0.97, 0.9, length)
    np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)
  kept = mask if masked else np.ones_like(mask)
  np.testing.assert_allclose(target, got + values * kept, rtol=1e-5)


def test_terminal_reward_is_at_the_last_token_or_the_last_index():
  mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
  reward = jnp.array([2.0, 3.0])
  np.testing.assert_array_equal(
    returns.place_terminal(reward, mask, 'last_token'), [[0, 2, 0, 0], [0, 0, 0, 3]]
  )
  np.testing.assert_array_equal(
    returns.place_terminal(reward, mask, 'last_index'), [[0, 0, 0, 2], [0, 0, 0, 3]]
  )


def test_explained_variance_of_perfect_constant_and_opposite_values():
  target = jnp.array([[1.0, 2.0, 3.0, 100.0]])
  mask = jnp.array([[True, True, True, False]])

  def of(*values):
    return float(returns.explained_variance(jnp.array([values]), target, mask))

  assert of(1.0, 2.0, 3.0, 0.0) == 1
  assert of(6.0, 7.0, 8.0, 0.0) == pytest.approx(1)  # off by a constant
  assert of(5.0, 5.0, 5.0, 9.0) == 0
  assert of(-1.0, -2.0, -3.0, 9.0) == pytest.approx(-3)  # Var(2 R) = 4 Var(R)


def test_explained_variance_of_returns_that_do_not_vary_is_zero():
  values = jnp.array([[1.0, 5.0]])
  assert float(returns.explained_variance(values, jnp.full((1, 2), 3.0))) == 0
  none = jnp.zeros((1, 2), bool)
  assert float(returns.explained_variance(values, values, none)) == 0


def test_the_last_token_is_the_last_real_one_behind_a_hole():
  """Register B36: a removed unknown token leaves a hole in the mask."""
  mask = jnp.array([[1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  placed = returns.place_terminal(jnp.array([2.0, 3.0, 4.0]), mask, 'last_token')
  np.testing.assert_array_equal(
    placed, [[0, 0, 0, 2, 0], [0, 3, 0, 0, 0], [4, 0, 0, 0, 0]]
  )


@pytest.mark.slow
def test_advantages_skip_a_hole_as_if_it_were_not_there(rng):
  rewards, values = (rng.normal(size=(1, 4)).astype(np.float32) for _ in range(2))
  holed = lambda x: jnp.insert(jnp.asarray(x), 2, 7.0, axis=1)
  mask = jnp.array([[1, 1, 0, 1, 1]], bool)
  expected, targets = returns.gae(rewards, values, 0.9, 0.8)
  found, found_targets = returns.gae(holed(rewards), holed(values), 0.9, 0.8, mask)
  keep = np.array([0, 1, 3, 4])
  np.testing.assert_allclose(found[:, keep], expected, rtol=1e-6)
  np.testing.assert_allclose(found_targets[:, keep], targets, rtol=1e-6)
  assert float(found[0, 2]) == 0


def test_without_a_mask_no_constant_is_left_to_fold(rng):
  """XLA took four minutes over the cumulative minimum of a constant mask."""
  rewards, values = rng.standard_normal((2, 2, 5), np.float32)
  plain = lambda r, v: returns.gae(r, v, 0.9, 0.8)
  assert 'cummin' not in str(jax.make_jaxpr(plain)(rewards, values))
  masked = returns.gae(rewards, values, 0.9, 0.8, jnp.ones((2, 5), bool))
  for found, expected in zip(plain(rewards, values), masked, strict=True):
    np.testing.assert_array_equal(found, expected)
