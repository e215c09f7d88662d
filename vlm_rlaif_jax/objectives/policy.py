"""The clipped losses of PPO (Schulman et al. 2017) as pure functions.

Arrays are `float32[B, R]`. Every mean is over the positions of a mask; without one it
is over all positions, pads included, as the reference computes it.
"""

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Returns the mean over the positions of a mask; over all without one."""
  if mask is None:
    return jnp.mean(x)
  return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1)


def approx_kl(
  logprob: jax.Array, old_logprob: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Returns mean[(ρ - 1) - log ρ], an estimate of KL(π_old || π), with ρ = π / π_old.

  This is the k3 estimator (Schulman 2020), never negative; under the same name TRL and
  cleanrl log it, see "The 37 implementation details of PPO" (Huang et al. 2022).
  """
  log_ratio = logprob - old_logprob
  return masked_mean(jnp.expm1(log_ratio) - log_ratio, mask)


def policy_loss(
  logprob: jax.Array,
  old_logprob: jax.Array,
  advantages: jax.Array,
  epsilon: float,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns mean max(-A ρ, -A clip(ρ, 1 - ε, 1 + ε)), with ρ = π / π_old (eq. 7).

  Returns:
    the loss, and statistics with the approximate KL ½ mean (log π - log π_old)² (the
    k2 estimator of Schulman 2020) and the share of clipped tokens.
  """
  log_ratio = logprob - old_logprob
  ratio = jnp.exp(log_ratio)
  plain = -advantages * ratio
  clipped = -advantages * jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
  loss = masked_mean(jnp.maximum(plain, clipped), mask)
  return loss, {
    'approximate_kl': 0.5 * masked_mean(jnp.square(log_ratio), mask),
    'clip_share': masked_mean((clipped > plain).astype(jnp.float32), mask),
    'ratio': masked_mean(ratio, mask),
  }


def value_loss(
  values: jax.Array,
  old_values: jax.Array,
  returns: jax.Array,
  radius: jax.Array | float,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns ½ mean max((V - R)², (clip(V, V_old ± radius) - R)²).

  Args:
    radius: how far a value may move from its old one before its gradient stops.

  Returns:
    the loss, and statistics with the mean squared error and the share of clipped
    tokens.
  """
  clipped = old_values + jnp.clip(values - old_values, -radius, radius)
  plain_error = jnp.square(values - returns)
  clipped_error = jnp.square(clipped - returns)
  loss = 0.5 * masked_mean(jnp.maximum(plain_error, clipped_error), mask)
  # Within the radius the two errors differ by rounding, which is no clip.
  stops = (clipped_error > plain_error) & (jnp.abs(values - old_values) > radius)
  return loss, {
    'error': masked_mean(plain_error, mask),
    'clip_share': masked_mean(stops.astype(jnp.float32), mask),
  }
