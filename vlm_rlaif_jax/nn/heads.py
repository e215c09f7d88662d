"""Scalar heads on hidden states, for rewards of sequences and values of positions."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ScalarHead:
  """Maps hidden states h to w · h + b, in float32.

  Attributes:
    w: `float32[D]`; b: `float32[]`.
  """

  w: jax.Array
  b: jax.Array

  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Applies the head, `[..., D]` -> `float32[...]`.

    GPUs would round both sides of a product of many rows to 10 bits (TF32), and not
    those of a few: values and rewards would be of other weights.
    """
    h = hidden.astype(jnp.float32)
    return jnp.einsum('...d,d->...', h, self.w, precision='highest') + self.b


def init_head(key: jax.Array, width: int, init: str = 'uniform') -> ScalarHead:
  """Returns a new head with bias 0.

  Args:
    init: 'uniform' for weights in ±1/sqrt(D), as the reward head starts; 'zero' as the
      value head starts.
  """
  w = jnp.zeros(width)
  if init == 'uniform':
    w = jax.random.uniform(key, (width,), minval=-(width**-0.5), maxval=width**-0.5)
  return ScalarHead(w=w, b=jnp.zeros(()))


def log_odds_head(vocabulary: jax.Array, option: int, other: int) -> ScalarHead:
  """Returns the head that gives the log-odds of two tokens as the next one.

  Args:
    vocabulary: `[V, D]`, the weights of the language model's head.
    option, other: ids; h maps to log p(option | h) - log p(other | h).
  """
  weights = jnp.asarray(vocabulary, jnp.float32)
  return ScalarHead(w=weights[option] - weights[other], b=jnp.zeros(()))
