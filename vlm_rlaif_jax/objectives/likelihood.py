"""Likelihood of tokens in float32: log-probabilities, cross-entropy, entropy."""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns log softmax(z)[token] of logits `[..., V]`, `float32[...]`."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
  """Returns H = - sum_v p log p of logits `[..., V]`, `float32[...]`."""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def over_chunks(
  function: Callable[[jax.Array, jax.Array], Any],
  hidden: jax.Array,
  tokens: jax.Array,
  chunk: int,
) -> Any:
  """Applies `function(hidden, tokens) -> tree of [B, t]` to pieces of the time axis.

  The vocabulary-sized logits of one piece live only while it is computed, in the
  backward pass too (they are recomputed), so no `[B, T, V]` tensor ever exists.

  Args:
    hidden: `[B, T, D]`; tokens: `int32[B, T]`.
    chunk: positions in a piece; 0 or at least T: all at once.
  """
  length = tokens.shape[1]
  if not 0 < chunk < length:
    return function(hidden, tokens)
  pad = -length % chunk
  pieces = (
    jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))),
    jnp.pad(tokens, ((0, 0), (0, pad))),
  )
  pieces = jax.tree.map(
    lambda x: einops.rearrange(x, 'b (n c) ... -> n b c ...', c=chunk), pieces
  )
  out = jax.lax.map(jax.checkpoint(lambda piece: function(*piece)), pieces)
  return jax.tree.map(
    lambda x: einops.rearrange(x, 'n b c -> b (n c)')[:, :length], out
  )


def cross_entropy(log_probability: jax.Array, target: jax.Array) -> jax.Array:
  """Returns - mean of log p over the target positions of the batch.

  Micro-batches weigh the same whatever their number of targets, as in the reference;
  a batch without targets gives 0 (the reference gives NaN).
  """
  count = jnp.sum(target)
  total = jnp.sum(jnp.where(target, log_probability, 0.0))
  return -total / jnp.maximum(count, 1)
