"""Keys and values in 8 bits, which halves what a decode step reads of its cache.

    x[..., k] = scale[...] code[..., k] + error,   scale[...] = max_k |x[..., k]| / 127

A head of a token has a scale of its own, so a token is written without a look at those
before it, and no element moves by more than half of its scale. Scores and sums over
values are of the codes; scales multiply once a slot, not once an element.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.settings.models import CacheKind

LARGEST = 127


@flax.struct.dataclass
class Int8:
  """Keys or values.

  Attributes:
    codes: `int8[..., K]`.
    scale: `float32[...]`.
  """

  codes: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the shape of the keys or values."""
    return self.codes.shape


def quantize(x: jax.Array) -> Int8:
  """Rounds `[..., K]` to 8 bits; zeros stay zeros."""
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=-1) / LARGEST
  unit = jnp.where(scale > 0, scale, 1.0)
  codes = jnp.round(x / unit[..., None]).astype(jnp.int8)
  return Int8(codes, scale)


def rounded(x: jax.Array) -> jax.Array:
  """Returns what is left of `[..., K]` in 8 bits, in its own dtype."""
  stored = quantize(x)
  return (stored.codes * stored.scale[..., None]).astype(x.dtype)


def store(x: jax.Array, kind: CacheKind) -> jax.Array | Int8:
  """Returns keys or values as a cache of some kind holds them."""
  return quantize(x) if kind == 'int8' else x


def numbers(x: jax.Array | Int8, dtype: Any) -> jax.Array:
  """Returns what products are of: codes in some dtype, exactly; or the array itself."""
  return x.codes.astype(dtype) if isinstance(x, Int8) else x
