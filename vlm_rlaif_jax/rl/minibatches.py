"""Chooses the rows of every optimizer step, and what its micro-batches count.

A rollout has B rows, an optimizer step S of them, a micro-batch M of those. Rows are
permuted within groups of neighbors, so that none leaves its device and the number of
devices changes nothing.
"""

import math

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.settings.ppo import PpoConfig


def group_orders(key: jax.Array, groups: int, members: int) -> jax.Array:
  """Returns for every group its members in a random order, `int32[members, groups]`."""
  uniform = jax.random.uniform(key, (groups, members))
  return jnp.argsort(uniform, axis=1).T


def choose(key: jax.Array, config: PpoConfig) -> jax.Array:
  """Returns the rows of every micro-batch, `int32[epochs x B / S, S / M, M]`.

  An element m of a micro-batch is a row of the m-th of M blocks of B / M rows; the
  number is that of the row in its block.

      mask_pads   a step takes one row of each of S groups, whatever M is
      parity      a micro-batch takes one row of each of M groups, as each device of the
                  reference takes its micro-batches from rows of its own
  """
  micro = config.micro_batch
  accumulate = config.step_batch // micro
  keys = jax.random.split(key, config.epochs)
  if not config.mask_pads:
    members = config.rollout_batch // micro
    order = jax.vmap(lambda key: group_orders(key, micro, members))(keys)
    return order.reshape(-1, accumulate, micro)
  members = config.rollout_batch // config.step_batch
  order = jax.vmap(lambda key: group_orders(key, config.step_batch, members))(keys)
  order = jnp.swapaxes(order.reshape(-1, micro, accumulate), 1, 2)
  return order + members * jnp.arange(accumulate)[None, :, None]


def take(blocks: jax.Array, chosen: jax.Array) -> jax.Array:
  """Returns chosen rows of blocks `[M, B / M, ...]`: `[..., M, ...]` for `[..., M]`."""
  if chosen.ndim > 1:
    return jax.vmap(lambda part: take(blocks, part))(chosen)
  return jax.vmap(lambda block, row: block[row])(blocks, chosen)


def weights(mask: jax.Array, config: PpoConfig) -> jax.Array:
  """Returns what each micro-batch of a step counts, `float32[S / M]`; the sum is 1.

  Losses are means over the real tokens of a micro-batch. Weighed by the number of them,
  they add up to the mean over those of the step. The reference, whose means are over
  all positions, weighs micro-batches alike.

  Args:
    mask: `bool[S / M, M, R]`, real tokens.
  """
  count = mask.shape[0]
  if not config.mask_pads:
    return jnp.full(count, 1 / count)
  tokens = jnp.sum(mask, axis=(1, 2)).astype(jnp.float32)
  return tokens / jnp.maximum(jnp.sum(tokens), 1)


def value_radius(
  returns: jax.Array, mask: jax.Array, config: PpoConfig
) -> jax.Array | float:
  """Returns how far a value may move in a step: `clip_value`, in its unit.

  Args:
    returns, mask: of the rows of the step; the deviation is over its real tokens.
  """
  if config.clip_value_by == 'absolute' or math.isinf(config.clip_value):
    return config.clip_value
  # Of no real token there is no deviation, and NaN is no radius.
  deviation = jnp.std(returns, where=mask)
  return config.clip_value * jnp.where(jnp.any(mask), deviation, 0.0)
