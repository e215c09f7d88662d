"""x Wᵀ with W in 4 bits. Gradients go to x only; W is unpacked again for them.

    product               when
    fused (`kernel`)      NF4 on an NVIDIA GPU with few rows (decoding), see `is_fused`
    split                 inputs sharded over the mesh axis `tensor`, see `is_split`
    plain                 everything else, and every other gradient

On TPU v5e, XLA fuses the unpacking into the plain product, which goes by halves. On v5p
it writes the halves to memory: cheap next to the thousands of rows of training, and
expensive in decoding. There is no kernel for v5p; if memory allows, decode there with
the residency `nf4_bf16`. On GPUs XLA always writes the unpacked weight to memory, so
there it is one matrix and one product.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.core.quant import blocks
from vlm_rlaif_jax.core.quant.int4 import Int4
from vlm_rlaif_jax.core.quant.nf4 import Nf4

Leaf = Nf4 | Int4
TENSOR = 'tensor'
FEW_ROWS = 256  # per device; gathering them costs less than exchanging a matrix


@flax.struct.dataclass
class Layer:
  """One layer of a stacked weight, not sliced out: the kernel reads it in place.

  Attributes:
    stack: a weight `[L, out, in]`.
    index: `int32[]`, which of the L.
  """

  stack: Leaf
  index: jax.Array

  def slice(self) -> Leaf:
    """Returns a copy of the layer, `[out, in]`."""

    def at_index(x: jax.Array) -> jax.Array:
      return jax.lax.dynamic_index_in_dim(x, self.index, keepdims=False)

    return jax.tree.map(at_index, self.stack)


def product(x: jax.Array, leaf: Leaf | Layer, inp: str | None = None) -> jax.Array:
  """Multiplies x by a quantized matrix.

  Under a mesh, the first axis of x is the batch.

  Args:
    x: `[..., in]`.
    leaf: `[out, in]`.
    inp: logical name of the input axis; None: not sharded.

  Returns:
    `[..., out]` in the dtype of x.
  """
  return _product(x, leaf, inp)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, leaf: Leaf | Layer, inp: str | None) -> Any:
  stored = leaf.stack if isinstance(leaf, Layer) else leaf
  if is_fused(x, stored):
    return jax.lax.platform_dependent(x, leaf, cuda=fused, default=_plain)
  return split(x, leaf) if is_split(x, stored, inp) else _plain(x, leaf)


def is_fused(x: jax.Array, leaf: Leaf) -> bool:
  """Returns whether a program for an NVIDIA GPU uses the kernel.

  It needs few rows per device, whole tiles, and the whole weight on every device: the
  partitioner cannot split a kernel, so on meshes with more than the `data` axis the
  plain product is used. Programs for other targets never use the kernel.
  """
  if not isinstance(leaf, Nf4):
    return False
  # Imported here because Pallas is slow to load and most runs do not need it.
  try:
    from vlm_rlaif_jax.core.quant import kernel
  except ImportError:  # Pallas's Triton backend is deprecated and may be absent
    return False

  mesh = jax.sharding.get_abstract_mesh()
  shards = _shards(mesh)
  return (
    not blocks.is_flat(leaf.shape, leaf.block)
    and leaf.shape[0] % kernel.COLUMNS == 0
    and x.dtype in (jnp.bfloat16, jnp.float16)
    and x.size <= x.shape[-1] * shards * kernel.ROWS
    and (mesh.empty or mesh.size == shards)
    and x.shape[0] % shards == 0
  )


def fused(x: jax.Array, leaf: Nf4 | Layer, interpret: bool = False) -> jax.Array:
  """Computes `product` with the kernel, on each device for its own rows.

  Args:
    x, leaf: such that `is_fused`.
    interpret: whether to run the kernel on any device, slowly.
  """
  from vlm_rlaif_jax.core.quant import kernel

  if isinstance(leaf, Layer):
    layer = leaf
  else:
    layer = Layer(jax.tree.map(lambda x: x[None], leaf), jnp.int32(0))

  def local(x: jax.Array, layer: Any) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    y = kernel.product(rows, layer.stack, layer.index, interpret=interpret)
    return y.reshape(*x.shape[:-1], -1)

  mesh = jax.sharding.get_abstract_mesh()
  if _shards(mesh) == 1:
    return local(x, layer)
  rows = PartitionSpec('data')
  return jax.shard_map(
    local, in_specs=(rows, PartitionSpec()), out_specs=rows, check_vma=False
  )(x, layer)


def _shards(mesh: jax.sharding.AbstractMesh) -> int:
  return mesh.shape.get('data', 1)


def _plain(x: jax.Array, leaf: Leaf | Layer) -> jax.Array:
  leaf = leaf.slice() if isinstance(leaf, Layer) else leaf
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...i,oi->...o', x, leaf.dequantize(x.dtype))
  return jax.lax.platform_dependent(x, leaf, cuda=unpacked_product, default=by_halves)


def unpacked_product(x: jax.Array, leaf: Leaf) -> jax.Array:
  """Unpacks the whole matrix and multiplies by it."""
  return jnp.einsum('...i,io->...o', x, _unpacked(leaf, x.dtype))


def _unpacked(leaf: Leaf, dtype: Any) -> jax.Array:
  """Returns the transposed matrix, `[in, out]`."""
  packed = blocks.pairs(leaf.codes, leaf.block)
  both = blocks.interleave(*(leaf.part(packed, half, dtype) for half in (0, 1)))
  return both.reshape(-1, both.shape[-1])


def by_halves(x: jax.Array, leaf: Leaf) -> jax.Array:
  """Multiplies by the even blocks and by the odd ones, and adds up in float32.

  No value moves across lanes, and XLA can fuse each unpacking into its product. A
  barrier makes the second product start after the first; otherwise XLA unpacks both at
  once and writes them to memory on every platform.
  """
  even, odd = _halves(x, leaf.block)
  packed = blocks.pairs(leaf.codes, leaf.block)
  first = _times(even, leaf.part(packed, 0, x.dtype))
  first, packed = jax.lax.optimization_barrier((first, packed))
  return (first + _times(odd, leaf.part(packed, 1, x.dtype))).astype(x.dtype)


def is_split(x: jax.Array, leaf: Leaf, inp: str | None) -> bool:
  """Returns whether each device multiplies its own inputs, before one sum over devices.

  The partitioner by itself would sum both products of `by_halves` over the devices, in
  float32, and gather all of x if the blocks of a matrix do not divide evenly (`down` of
  7B over 8). Exchanging the parts of such a matrix pays off if there are many rows.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ways = mesh.shape.get(TENSOR, 1)
  if ways == 1 or sharding.RULES[inp] != TENSOR:
    return False
  if _whole_pairs(leaf, ways):
    return True
  rows = x.size // (x.shape[-1] * sharding.batch_shards(mesh))
  divides = all(size % ways == 0 for size in leaf.shape)
  return rows > FEW_ROWS and divides and not blocks.is_flat(leaf.shape, leaf.block)


def split(x: jax.Array, leaf: Leaf | Layer) -> jax.Array:
  """Computes `product` with the inputs sharded over `tensor`.

  Each device sums in float32; the sum over devices is in the dtype of x.
  """

  def local(x: jax.Array, part: Leaf | jax.Array) -> jax.Array:
    if isinstance(part, jax.Array):
      y = jnp.einsum('...i,io->...o', x, part)
    else:
      y = _plain(x, part)
    return jax.lax.psum(y, TENSOR)

  return _on_each(local, x, leaf, PartitionSpec(*(None,) * (x.ndim - 1), TENSOR), ())


def _split_gradient(grad: jax.Array, leaf: Leaf | Layer) -> jax.Array:
  """Returns the gradient of x, sharded over its inputs; needs no sum over devices."""

  def local(grad: jax.Array, part: Leaf | jax.Array) -> jax.Array:
    if isinstance(part, jax.Array):
      return jnp.einsum('...o,io->...i', grad, part)
    return _gradient(grad, part)

  out = (*(None,) * (grad.ndim - 1), TENSOR)
  return _on_each(local, grad, leaf, PartitionSpec(), out)


def _on_each(
  local: Callable[[jax.Array, Leaf | jax.Array], jax.Array],
  x: jax.Array,
  leaf: Leaf | Layer,
  where: PartitionSpec,
  out: tuple[str | None, ...],
) -> jax.Array:
  """Runs `local(x, part)` on each device of the mesh axis `tensor`.

  `part` is the weight of the device's inputs, `[out, in / ways]`. If that would cut
  blocks, the weight is sharded by its outputs (`weights.placement.leaf_sharding`); it
  is then unpacked and exchanged, and `part` is an array, `[in / ways, out]`.

  Args:
    where: spec of x; out: axes of the result's spec.
  """
  leaf = leaf.slice() if isinstance(leaf, Layer) else leaf
  ways = jax.sharding.get_abstract_mesh().shape[TENSOR]
  features, inputs = leaf.shape
  by_input = _whole_pairs(leaf, ways)
  stored = PartitionSpec(TENSOR) if by_input else PartitionSpec(None, TENSOR)

  def run(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    if by_input:
      return local(x, leaf.with_scales(codes, scales, (features, inputs // ways)))
    part = leaf.with_scales(codes, scales, (features // ways, inputs))
    unpacked = jnp.swapaxes(part.dequantize(x.dtype), -1, -2)
    return local(
      x, jax.lax.all_to_all(unpacked, TENSOR, split_axis=0, concat_axis=1, tiled=True)
    )

  return jax.shard_map(
    run,
    in_specs=(where, stored, stored),
    out_specs=PartitionSpec(*out),
    axis_names={TENSOR},
    check_vma=False,
  )(x, leaf.codes, leaf.scales())


def _whole_pairs(leaf: Leaf, ways: int) -> bool:
  """Returns whether the inputs divide over devices without cutting a pair of blocks."""
  return leaf.shape[1] % (2 * leaf.block * ways) == 0


def _forward(x: jax.Array, leaf: Leaf | Layer, inp: str | None):
  return _product(x, leaf, inp), leaf


def _backward(inp: str | None, leaf: Leaf | Layer, grad: jax.Array):
  """Returns the gradient of x; the weight, the only residual, has none."""
  stored = leaf.stack if isinstance(leaf, Layer) else leaf
  gradient = _split_gradient if is_split(grad, stored, inp) else _gradient
  return gradient(grad, leaf), None


def _gradient(grad: jax.Array, leaf: Leaf | Layer) -> jax.Array:
  leaf = leaf.slice() if isinstance(leaf, Layer) else leaf
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...o,oi->...i', grad, leaf.dequantize(grad.dtype))
  return jax.lax.platform_dependent(
    grad, leaf, cuda=unpacked_gradient, default=gradient_by_halves
  )


def unpacked_gradient(grad: jax.Array, leaf: Leaf) -> jax.Array:
  """Computes the gradient of `unpacked_product`."""
  return jnp.einsum('...o,io->...i', grad, _unpacked(leaf, grad.dtype))


def gradient_by_halves(grad: jax.Array, leaf: Leaf) -> jax.Array:
  """Computes the gradient of `by_halves`."""
  packed = blocks.pairs(leaf.codes, leaf.block)
  halves = [
    jnp.einsum('...o,pto->...pt', grad, leaf.part(packed, half, grad.dtype))
    for half in (0, 1)
  ]
  return jnp.stack(halves, axis=-2).reshape(*grad.shape[:-1], leaf.shape[1])


_product.defvjp(_forward, _backward)


def _times(x: jax.Array, w: jax.Array) -> jax.Array:
  """Multiplies x `[..., in / 2]` by w `[pairs, size, out]` as one matrix product."""
  w = w.reshape(-1, w.shape[-1])
  return jnp.einsum('...i,io->...o', x, w, preferred_element_type=jnp.float32)


def _halves(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Returns the inputs of the even and of the odd blocks, `[..., in / 2]` each."""
  split = x.reshape(*x.shape[:-1], -1, 2, size)
  half = (*x.shape[:-1], x.shape[-1] // 2)
  return split[..., 0, :].reshape(half), split[..., 1, :].reshape(half)
