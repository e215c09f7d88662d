"""Learning from pairs: the Bradley-Terry loss, accuracy, and margins of a judge."""

import jax
import jax.numpy as jnp
import numpy as np


def bradley_terry_loss(
  score_1: jax.Array,
  score_2: jax.Array,
  preferred: jax.Array,
  centering: float,
  weight: jax.Array,
  sign: jax.Array | None = None,
) -> jax.Array:
  """Returns mean[ -log σ(±(r2 - r1)) ] + c |mean(r1 + r2)|.

  The first term is eq. 1 of Ouyang et al. 2022.

  The second term keeps the scores around zero; the reference adds it, the paper does
  not print it.

  Args:
    score_1, score_2: `float32[B]`.
    preferred: `int32[B]`, 0 or 1: which answer is better.
    weight: `float32[B]`, 0 for rows that only fill the batch.
    sign: of mean(r1 + r2) over a step that these rows are a part of: the second term is
      then c sign mean(r1 + r2), whose weighted mean over the parts is that of the step;
      None: these rows are the whole step.
  """
  difference = score_2 - score_1
  signed = jnp.where(preferred == 1, difference, -difference)
  count = jnp.maximum(jnp.sum(weight), 1)
  ranking = jnp.sum(jax.nn.softplus(-signed) * weight) / count
  center = jnp.sum((score_1 + score_2) * weight) / count
  return ranking + centering * (jnp.abs(center) if sign is None else sign * center)


def pair_accuracy(
  score_1: jax.Array, score_2: jax.Array, preferred: jax.Array, weight: jax.Array
) -> jax.Array:
  """Returns the share of pairs ranked as preferred; a tie is half right.

  So a model that cannot tell two answers apart gets one half, whatever the labels
  prefer. The reference counts a tie for the second answer. NaN is never right.
  """
  difference = score_2 - score_1
  signed = jnp.where(preferred == 1, difference, -difference)
  right = (signed > 0) + 0.5 * (signed == 0)
  return jnp.sum(right * weight) / jnp.maximum(jnp.sum(weight), 1)


def order_margin(
  forward: np.ndarray, swapped: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the log-odds that answer 1 is better, from both orders of the answers.

  Args:
    forward: log p(A) - log p(B) with answer 1 as A; swapped: the same, answer 2 as A.

  Returns:
    the margin (their antisymmetric half, free of a preference for a position), and
    whether both orders prefer the same answer, or neither any.
  """
  return (forward - swapped) / 2, np.sign(forward) == -np.sign(swapped)
