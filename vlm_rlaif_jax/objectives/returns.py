"""Rewards a token, advantages and returns. One time convention throughout:

    t             0  1  2  3  4      R = 5 positions
    token         a  b  c </s> pad   what was sampled at t
    mask          1  1  1  1   0
    log p, V      of token t, and of the state before it
    last_token              ^        where the answer's own reward belongs
    last_index                  ^    where the reference puts it

All arrays are `float32[B, R]` unless said, masks are bool.
"""

from typing import Literal

import jax
import jax.numpy as jnp


def kl_estimate(
  logprob, reference, kind: Literal['k1_clamped', 'k1', 'k3'] = 'k1_clamped'
):
  """Estimates of KL(policy || reference) a token, from samples of the policy.

  With a = log π - log π_ref:  k1: a;  k1_clamped: max(a, 0), biased upwards;
  k3: exp(-a) - 1 + a, unbiased and never negative (Schulman 2020).
  """
  a = logprob - reference
  if kind == 'k1':
    return a
  if kind == 'k1_clamped':
    return jnp.maximum(a, 0.0)
  return jnp.exp(-a) - 1 + a


def place_terminal(reward, mask, where: Literal['last_index', 'last_token']):
  """`float32[B]` -> `float32[B, R]`: the reward of an answer, at one position."""
  length = mask.shape[1]
  if where == 'last_index':
    index = jnp.full(mask.shape[0], length - 1)
  else:
    index = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
  return jax.nn.one_hot(index, length, dtype=jnp.float32) * reward[:, None]


def gae(rewards, values, gamma: float, lam: float, mask=None):
  """Generalized advantage estimation (Schulman et al. 2016, eq. 11 and 16).

      δ_t = r_t + γ V_{t+1} - V_t,   A_t = δ_t + γ λ A_{t+1},   V_R = A_R = 0

  Args:
    mask: None, or which positions exist: the value after the last real token is then
      0, and nothing flows through pads.

  Returns:
    advantages, and returns A_t + V_t.
  """
  if mask is not None:
    rewards, values = rewards * mask, values * mask
  following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  delta = rewards + gamma * following - values

  def back(advantage, delta_t):
    advantage = delta_t + gamma * lam * advantage
    return advantage, advantage

  _, advantages = jax.lax.scan(back, jnp.zeros(rewards.shape[0]), delta.T, reverse=True)
  advantages = advantages.T
  if mask is not None:
    advantages = advantages * mask
  return advantages, advantages + values


def whiten(
  x,
  mask=None,
  *,
  recenter: bool = True,
  scope: Literal['batch', 'device', 'row'] = 'batch',
  devices: int = 1,
):
  """(x - mean) / (std + 1e-8), population statistics over the scope.

  Args:
    mask: None, or which positions count; the others become 0.
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
