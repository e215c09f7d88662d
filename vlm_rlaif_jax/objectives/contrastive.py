"""The loss that aligns pictures with their captions."""

import jax
import jax.numpy as jnp


def clip_loss(similarity: jax.Array) -> jax.Array:
  """Returns CLIP's symmetric cross-entropy (Radford et al. 2021), a scalar.

  Args:
    similarity: `[B, B]`, scaled cosines of pictures (rows) and captions (columns);
      matches are on the diagonal.
  """
  by_picture = jnp.diag(jax.nn.log_softmax(similarity, axis=1))
  by_caption = jnp.diag(jax.nn.log_softmax(similarity, axis=0))
  return -0.5 * (jnp.mean(by_picture) + jnp.mean(by_caption))
