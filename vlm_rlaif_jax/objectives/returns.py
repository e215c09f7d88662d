"""Rewards per token, advantages and returns, in one convention of time:

    t             0  1  2  3  4      R = 5 positions
    token         a  b  c </s> pad   what was sampled at t
    mask          1  1  1  1   0
    log p, V      of token t, and of the state before it
    last_token              ^        where the answer's own reward belongs
    last_index                  ^    where the reference puts it

Arrays are `float32[B, R]` where nothing else is written; masks are `bool[B, R]`.
"""

from typing import Literal

import jax
import jax.numpy as jnp


def kl_estimate(
  logprob: jax.Array,
  reference: jax.Array,
  kind: Literal['k1_clamped', 'k1', 'k3'] = 'k1_clamped',
) -> jax.Array:
  """Estimates KL(policy || reference) per token, from samples of the policy.

  With a = log π - log π_ref:  k1: a;  k1_clamped: max(a, 0), biased upwards;
  k3: exp(-a) - 1 + a, unbiased and never negative (Schulman 2020).
  """
  a = logprob - reference
  if kind == 'k1':
    return a
  if kind == 'k1_clamped':
    return jnp.maximum(a, 0.0)
  return jnp.exp(-a) - 1 + a


def place_terminal(
  reward: jax.Array, mask: jax.Array, position: Literal['last_index', 'last_token']
) -> jax.Array:
  """Returns the rewards of responses `float32[B]` at one position of each.

  The last token is the last one that the mask has, which may have holes where an
  unknown token was removed (register B36); of an empty response, the first position.
  """
  length = mask.shape[1]
  if position == 'last_index':
    index = jnp.full(mask.shape[0], length - 1)
  else:
    index = jnp.max(jnp.where(mask, jnp.arange(length)[None], 0), axis=1)
  return jax.nn.one_hot(index, length, dtype=jnp.float32) * reward[:, None]


def gae(
  rewards: jax.Array,
  values: jax.Array,
  gamma: float,
  lam: float,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Estimates advantages by GAE (Schulman et al. 2016, eq. 11 and 16).

      δ_t = r_t + γ V_{t+1} - V_t,   A_t = δ_t + γ λ A_{t+1},   V_R = A_R = 0

  Args:
    mask: which positions are real: t + 1 is the next one of them, the value after the
      last is 0, and pads get 0; None: all.

  Returns:
    advantages, and returns A_t + V_t.
  """
  if mask is None:
    following, mask = _shifted(values), jnp.ones(rewards.shape, bool)
  else:
    rewards, values = rewards * mask, values * mask
    following = _next_real(values, mask)
  delta = rewards + gamma * following - values

  def back(advantage: jax.Array, now: tuple) -> tuple:
    delta_t, real = now
    here = delta_t + gamma * lam * advantage
    return jnp.where(real, here, advantage), jnp.where(real, here, 0.0)

  nothing = jnp.zeros(rewards.shape[0])
  _, advantages = jax.lax.scan(back, nothing, (delta.T, mask.T), reverse=True)
  return advantages.T, advantages.T + values


def group_advantages(rewards: jax.Array, group: int) -> jax.Array:
  """Returns by how much each reward beats its group, `float32[B]` (Shao et al. 2024).

      A_i = (r_i - mean) / (deviation + 1e-4), over the G rows of a group

  A group whose rewards are all equal teaches nothing: its advantages are 0.

  Args:
    rewards: `float32[B]`; rows of a group follow one another.
    group: G, divides B.
  """
  rows = rewards.reshape(-1, group)
  # From the first row on: the mean of G equal numbers is rounded, and what it differs
  # by, divided by 1e-4, would be an advantage that all rows have.
  rows = rows - rows[:, :1]
  centered = rows - jnp.mean(rows, axis=1, keepdims=True)
  return (centered / (jnp.std(rows, axis=1, keepdims=True) + 1e-4)).reshape(-1)


def _shifted(values: jax.Array) -> jax.Array:
  """Returns the value of the next position after each, 0 after the last.

  `_next_real` of a mask that is true everywhere is the same, but a constant to XLA,
  which takes minutes to fold its cumulative minimum while it compiles.
  """
  return jnp.pad(values[:, 1:], ((0, 0), (0, 1)))


def _next_real(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the value of the next real position after each, 0 where there is none."""
  length = values.shape[1]
  real = jnp.where(mask, jnp.arange(length)[None], length)
  here_or_later = jax.lax.cummin(real, axis=1, reverse=True)
  index = jnp.pad(here_or_later[:, 1:], ((0, 0), (0, 1)), constant_values=length)
  return jnp.take_along_axis(jnp.pad(values, ((0, 0), (0, 1))), index, axis=1)


def explained_variance(
  values: jax.Array, returns: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Returns 1 - Var(R - V) / Var(R) over real tokens, a scalar.

  1 is a perfect value function, 0 one that knows no more than the mean; returns that do
  not vary give 0.
  """
  weight = jnp.ones_like(returns) if mask is None else mask.astype(returns.dtype)
  count = jnp.maximum(jnp.sum(weight), 1)

  def variance(x: jax.Array) -> jax.Array:
    mean = jnp.sum(x * weight) / count
    return jnp.sum(jnp.square(x - mean) * weight) / count

  total = variance(returns)
  safe = jnp.where(total > 0, total, 1.0)
  return jnp.where(total > 0, 1 - variance(returns - values) / safe, 0.0)


def whiten(
  x: jax.Array,
  mask: jax.Array | None = None,
  *,
  recenter: bool = True,
  scope: Literal['batch', 'device', 'row'] = 'batch',
  devices: int = 1,
) -> jax.Array:
  """Returns (x - mean) / (std + 1e-8), with population statistics over the scope.

  Args:
    mask: which positions count, the others become 0; None: all.
    recenter: False adds the mean back (whitening of rewards).
    scope: the whole batch, the rows of one device, or one row.
    devices: over how many devices the rows are spread, for scope 'device'.
  """
  groups = {'batch': 1, 'device': devices, 'row': x.shape[0]}[scope]
  grouped = x.reshape(groups, -1)
  keep = jnp.ones_like(grouped) if mask is None else mask.reshape(groups, -1)
  keep = keep.astype(x.dtype)
  count = jnp.maximum(jnp.sum(keep, 1, keepdims=True), 1)
  mean = jnp.sum(grouped * keep, 1, keepdims=True) / count
  variance = jnp.sum(jnp.square(grouped - mean) * keep, 1, keepdims=True) / count
  out = (grouped - mean) / (jnp.sqrt(variance) + 1e-8)
  if not recenter:
    out = out + mean
  return (out * keep).reshape(x.shape)
