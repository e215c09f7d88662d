"""Plain symmetric int4 in groups along the input axis.

    scale_g = max |w| / 7 over a group, in bfloat16
    w      ~= (code - 8) scale_g,   code = round(w / scale_g) + 8, 1 .. 15

Bits per weight: 4 + 16 / group.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core.quant import blocks
from vlm_rlaif_jax.core.quant.blocks import Array, namespace

GROUP = 64
ZERO = 8  # the code of 0
TOP = 7


@flax.struct.dataclass
class Int4:
  """A weight `[..., out, in]`; leading axes are stacked layers.

  Attributes:
    codes: `uint8[..., in / 2, out]`, two codes a byte, see `blocks`.
    scale: `bfloat16[..., in / block, out]`.
    shape: (out, in).
    block: inputs that share a scale.
  """

  codes: Any
  scale: Any
  shape: tuple[int, int] = flax.struct.field(pytree_node=False)
  block: int = flax.struct.field(pytree_node=False, default=GROUP)

  def scales(self) -> Array:
    """Returns the scale of every block, `[..., in / block, out]`."""
    return self.scale

  def with_scales(self, codes: Array, scales: Array, shape: tuple[int, int]) -> 'Int4':
    """Returns a part of this matrix, given its codes and its part of `scales()`."""
    return Int4(codes, scales, shape=shape, block=self.block)

  def part(self, packed: Array, half: int, dtype: Any) -> Array:
    """Returns the weights of the even (0) or odd (1) blocks.

    Args:
      packed: `blocks.pairs` of the codes.
    """
    value = blocks.nibble(packed, half).astype(np.float32) - ZERO
    scale = self.scale.astype(np.float32)[..., half::2, None, :]
    return (value * scale).astype(dtype)

  def dequantize(self, dtype: Any = jnp.float32) -> Array:
    """Returns the matrix, `[..., out, in]`."""
    return blocks.dequantize(self, dtype)


def quantize(weight: Array, group: int = GROUP) -> Int4:
  """Quantizes `[..., out, in]`: numpy arrays on the host, jax arrays on the device."""
  blocks.check(weight)
  xp = namespace(weight)
  split = blocks.split(weight, group).astype(np.float32)
  scale = (xp.max(xp.abs(split), axis=-2) / np.float32(TOP)).astype(jnp.bfloat16)
  divisor = scale.astype(np.float32)[..., None, :]
  divisor = xp.where(divisor == 0, np.float32(1), divisor)
  codes = xp.clip(xp.round(split / divisor), -TOP, TOP) + ZERO
  return Int4(
    blocks.pack(codes.astype(np.uint8)), scale, shape=weight.shape[-2:], block=group
  )


def dequantize(leaf: Int4, dtype: Any = jnp.float32) -> Array:
  """Returns the matrix, `[..., out, in]`, in `dtype`."""
  return leaf.dequantize(dtype)
