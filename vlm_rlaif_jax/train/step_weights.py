"""Weighs the micro-batches of an optimizer step, and a step whose batch is not full.

A batch is planned by shapes, so its last one of a shape has blank rows, and its micro-
batches have different numbers of targets. Neither may decide what a token counts.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

# Weights of micro-batches `[A]`, which add up to 1, and the share of a step `[]`.
StepWeights = tuple[jax.Array, jax.Array]


def alike(accumulate: int) -> StepWeights:
  """Returns the weights of a whole step whose micro-batches count alike."""
  return jnp.full(accumulate, 1 / accumulate), jnp.ones(())


def weigh_by(
  counts_of: Callable[[Any], jax.Array], mean: Literal['step', 'micro_batch']
) -> Callable[[Any], StepWeights]:
  """Returns the weights of micro-batches, by `optim.loss_mean`.

      step          w_a = n_a / sum of n, so that every target of a step counts alike,
                    whatever micro-batch and device it is in
      micro_batch   w_a = 1 / (micro-batches with a target), as in the reference

  The share of a step is that of the rows that are not blank; `optim.apply_gradients`
  says what it scales.

  Args:
    counts_of: micro-batches -> targets of each row, `[A, B]`; 0: the row is blank.
  """

  def weigh(micro: Any) -> StepWeights:
    counts = counts_of(micro).astype(jnp.float32)
    share = jnp.mean(counts > 0)
    each = jnp.sum(counts, axis=1)
    if mean == 'micro_batch':
      each = (each > 0).astype(jnp.float32)
    return each / jnp.maximum(jnp.sum(each), 1), share

  return weigh


def targets_of(micro: dict) -> jax.Array:
  """Returns the target tokens of every row of micro-batches, `[A, B]`."""
  return jnp.sum(micro['target'][..., 1:], axis=-1)
