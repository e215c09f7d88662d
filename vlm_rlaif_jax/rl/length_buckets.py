"""Computes with responses at the length they have, not at the one they might have.

Responses of one micro-batch are cut to the shortest of a few lengths (`buckets`) that
holds all of their tokens, and rows of similar length come together. What is cut off are
pads, so that masked sums are the same; it needs `mask_pads`, as means over pads are
not. The branches of all buckets are in one program, which no host has to steer.

    lengths  3 9 4 60     buckets 16, 64     rows in order 3 4 | 9 60 -> 16 | 64 columns
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.inference import scoring
from vlm_rlaif_jax.rl import minibatches
from vlm_rlaif_jax.types import Rollout


def real_lengths(mask: jax.Array) -> jax.Array:
  """Returns the positions up to the last real token, `int32[..., R]` -> `[...]`."""
  return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1), 0), axis=-1)


def by_length(mask: jax.Array, chosen: jax.Array) -> jax.Array:
  """Returns the rows of a step in an order that puts similar lengths together.

  A row stays in its column, and so on its device. As a step is a sum over its rows, the
  order only decides how much padding is computed.

  Args:
    mask: `bool[M, B / M, R]`, real tokens of all rows, in blocks.
    chosen: `int32[S / M, M]`, of `minibatches.choose`.
  """
  order = jnp.argsort(real_lengths(minibatches.take(mask, chosen)), axis=0)
  return jnp.take_along_axis(chosen, order, axis=0)


def at_length(
  function: Callable[..., Any], buckets: Sequence[int], rollout: Rollout, *rest: Any
) -> Any:
  """Returns `function(rollout, *rest)`, computed at the shortest bucket that fits.

  Args:
    buckets: lengths of responses below R, ascending; none: computed at R.
    rest: trees of arrays with rows, and with the R columns where they are matrices.

  Returns:
    what the function returns; it must not depend on the number of columns.
  """
  full = rollout.tokens.shape[1]
  if not buckets:
    return function(rollout, *rest)

  def branch(length: int) -> Callable[..., Any]:
    return lambda rollout, *rest: function(
      cut_rollout(rollout, length), *(cut_columns(tree, length) for tree in rest)
    )

  longest = jnp.max(real_lengths(rollout.mask))
  index = jnp.searchsorted(jnp.asarray(buckets), longest)
  return jax.lax.switch(index, [branch(n) for n in (*buckets, full)], rollout, *rest)


def in_micro_batches(
  function: Callable[[Rollout], Any],
  rollout: Rollout,
  size: int,
  buckets: Sequence[int],
) -> Any:
  """Applies a function to `size` rows at a time, as `scoring.in_micro_batches`.

  Args:
    function: rows -> tree of `[B, R']` and `[B]`; missing columns become 0.
    buckets: of `at_length`.
  """
  if not buckets:
    return scoring.in_micro_batches(function, rollout, size)
  rows, full = rollout.tokens.shape
  groups = min(size, rows)  # each on one device; a micro-batch has one row of each

  def grouped(x: jax.Array, order: jax.Array) -> jax.Array:
    parts = x.reshape(groups, -1, *x.shape[1:])
    return jax.vmap(lambda part, order: part[order])(parts, order).reshape(x.shape)

  def whole(part: Rollout) -> Any:
    out = function(part)
    return jax.tree.map(lambda x: widen(x, full), out)

  order = jnp.argsort(real_lengths(rollout.mask).reshape(groups, -1), axis=1)
  shorter_first = jax.tree.map(lambda x: grouped(x, order), rollout)
  out = scoring.in_micro_batches(
    lambda part: at_length(whole, buckets, part), shorter_first, size
  )
  back = jnp.argsort(order, axis=1)
  return jax.tree.map(lambda x: grouped(x, back), out)


def cut_rollout(rollout: Rollout, length: int) -> Rollout:
  """Returns a rollout with the first columns of its responses."""
  names = ('tokens', 'mask', 'sampler_logprobs')
  cut = {name: getattr(rollout, name)[:, :length] for name in names}
  return dataclasses.replace(rollout, **cut)


def cut_columns(tree: Any, length: int) -> Any:
  """Returns a tree with the first columns of its matrices; vectors stay."""
  return jax.tree.map(lambda x: x[:, :length] if x.ndim == 2 else x, tree)


def widen(x: jax.Array, length: int) -> jax.Array:
  """Returns a matrix with columns of 0 up to a length; a vector stays."""
  if x.ndim < 2:
    return x
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1])))
