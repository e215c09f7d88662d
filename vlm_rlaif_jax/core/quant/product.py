"""x Wᵀ with W in 4 bits: gradients go to x only, and W is unpacked again for them."""

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core.quant import blocks
from vlm_rlaif_jax.core.quant.int4 import Int4
from vlm_rlaif_jax.core.quant.nf4 import Nf4

Leaf = Nf4 | Int4


@jax.custom_vjp
def product(x, leaf: Leaf):
  """`[..., in]` times a quantised `[out, in]` -> `[..., out]` in the dtype of x.

  The even blocks and the odd blocks are two products, added in float32: no nibble is
  moved sideways, and each unpacking fuses into its product where XLA can (v5e does; v5p
  and GPUs write the halves to memory). The second starts after the first, or XLA would
  unpack both at once and write them everywhere.
  """
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...i,oi->...o', x, leaf.dequantize(x.dtype))
  even, odd = _halves(x, leaf.block)
  packed = blocks.pairs(leaf.codes, leaf.block)
  first = _times(even, leaf.part(packed, 0, x.dtype))
  first, packed = jax.lax.optimization_barrier((first, packed))
  return (first + _times(odd, leaf.part(packed, 1, x.dtype))).astype(x.dtype)


def _forward(x, leaf: Leaf):
  return product(x, leaf), leaf


def _backward(leaf: Leaf, grad):
  """The leaf is all that was kept; it has no gradient."""
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...o,oi->...i', grad, leaf.dequantize(grad.dtype)), None
  packed = blocks.pairs(leaf.codes, leaf.block)
  halves = [
    jnp.einsum('...o,pto->...pt', grad, leaf.part(packed, half, grad.dtype))
    for half in (0, 1)
  ]
  return jnp.stack(halves, axis=-2).reshape(*grad.shape[:-1], leaf.shape[1]), None


product.defvjp(_forward, _backward)


def _times(x, w):
  """x `[..., in / 2]`, w `[pairs, size, out]`, as one plain matrix product."""
  w = w.reshape(-1, w.shape[-1])
  return jnp.einsum('...i,io->...o', x, w, preferred_element_type=jnp.float32)


def _halves(x, size: int):
  """Inputs of the even and of the odd blocks, `[..., in / 2]` each."""
  split = x.reshape(*x.shape[:-1], -1, 2, size)
  half = (*x.shape[:-1], x.shape[-1] // 2)
  return split[..., 0, :].reshape(half), split[..., 1, :].reshape(half)
