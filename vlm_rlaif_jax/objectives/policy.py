"""The clipped losses of PPO (Schulman et al. 2017), as plain functions.

Every mean is over the positions of a mask; without a mask it is over all positions,
pads included, as the reference computes it.
"""

import jax.numpy as jnp


def masked_mean(x, mask=None):
  if mask is None:
    return jnp.mean(x)
  return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1)


def policy_loss(logprob, old_logprob, advantages, epsilon: float, mask=None):
  """mean max(-A ρ, -A clip(ρ, 1 - ε, 1 + ε)),  ρ = exp(log π - log π_old)  (eq. 7).

  Returns:
    loss, and statistics: approximate KL ½ mean (log π - log π_old)², clipped share.
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


def value_loss(values, old_values, returns, radius, mask=None):
  """½ mean max((V - R)², (clip(V, V_old ± radius) - R)²).

  Args:
    radius: how far a value may move from its old one before its gradient stops.

  Returns:
    loss, and statistics: mean squared error, clipped share.
  """
  clipped = old_values + jnp.clip(values - old_values, -radius, radius)
  plain_error = jnp.square(values - returns)
  clipped_error = jnp.square(clipped - returns)
  loss = 0.5 * masked_mean(jnp.maximum(plain_error, clipped_error), mask)
  return loss, {
    'error': masked_mean(plain_error, mask),
    'clip_share': masked_mean((clipped_error > plain_error).astype(jnp.float32), mask),
  }
