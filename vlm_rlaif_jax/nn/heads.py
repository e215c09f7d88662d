"""Scalar heads on hidden states: rewards of sequences, values of positions."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ScalarHead:
  """h -> w · h + b in float32. w: `float32[D]`, b: `float32[]`."""

  w: jax.Array
  b: jax.Array

  def __call__(self, hidden):
    """`[..., D]` -> `float32[...]`."""
    return jnp.einsum('...d,d->...', hidden.astype(jnp.float32), self.w) + self.b


def init_head(key, width: int, init: str = 'uniform') -> ScalarHead:
  """'uniform': ±1/sqrt(D), as a reward head starts; 'zero': as the value head."""
  w = jnp.zeros(width)
  if init == 'uniform':
    w = jax.random.uniform(key, (width,), minval=-(width**-0.5), maxval=width**-0.5)
  return ScalarHead(w=w, b=jnp.zeros(()))
