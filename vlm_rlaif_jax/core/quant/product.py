"""x Wᵀ with W in 4 bits: gradients go to x only, and W is unpacked again for them.

    which product                    when
    fused (`kernel`)                 NF4, for an NVIDIA GPU, see `is_fused`: decoding
    split                            inputs over the axis `tensor`, see `is_split`
    plain                            everything else, and every other gradient

XLA fuses the unpacking of the plain one, by halves, on v5e; for v5p it writes the
halves to memory: cheap beside the thousands of rows of training, dear in decoding. A
v5p has no kernel: where there is room, `nf4_bf16` is the residency to decode with. For
GPUs XLA writes what it unpacks, too, so there it is one matrix and one product.
"""

import functools
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
FEW_ROWS = 256  # on a device: gathering them costs less than exchanging a matrix


@flax.struct.dataclass
class Layer:
  """One layer of a stacked leaf that is not cut out of it: the kernel reads it there.

  stack: leaf of `[L, out, in]`; index: `int32[]`.
  """

  stack: Leaf
  index: jax.Array

  def cut(self) -> Leaf:
    at = lambda x: jax.lax.dynamic_index_in_dim(x, self.index, keepdims=False)
    return jax.tree.map(at, self.stack)


def product(x, leaf: Leaf | Layer, inp: str | None = None) -> jax.Array:
  """`[..., in]` times a quantized `[out, in]` -> `[..., out]` in the dtype of x.

  Under a mesh, the first axis of x is the batch.

  Args:
    inp: logical name of the input axis; None: whole on every device.
  """
  return _product(x, leaf, inp)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, leaf: Leaf | Layer, inp: str | None) -> Any:
  stored = leaf.stack if isinstance(leaf, Layer) else leaf
  if is_fused(x, stored):
    return jax.lax.platform_dependent(x, leaf, cuda=fused, default=_plain)
  return split(x, leaf) if is_split(x, stored, inp) else _plain(x, leaf)


def is_fused(x, leaf: Leaf) -> bool:
  """Whether a program for an NVIDIA GPU takes the kernel.

  Few rows on each device, whole tiles, and a leaf that every device has whole: to the
  partitioner a kernel is opaque, so over more than the `data` axis the plain product
  stays. Programs for other targets never take it.
  """
  if not isinstance(leaf, Nf4):
    return False
  # Not at the top: Pallas takes a while to load, and most runs have no use for it.
  try:
    from vlm_rlaif_jax.core.quant import kernel
  except ImportError:  # a JAX without Pallas's Triton, whose end is announced
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


def fused(x, leaf: Nf4 | Layer, interpret: bool = False):
  """`product` by the kernel, for what `is_fused` says; each device its own rows."""
  from vlm_rlaif_jax.core.quant import kernel

  if isinstance(leaf, Layer):
    layer = leaf
  else:
    layer = Layer(jax.tree.map(lambda x: x[None], leaf), jnp.int32(0))

  def local(x, layer):
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


def _shards(mesh) -> int:
  return mesh.shape.get('data', 1)


def _plain(x, leaf: Leaf | Layer):
  leaf = leaf.cut() if isinstance(leaf, Layer) else leaf
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...i,oi->...o', x, leaf.dequantize(x.dtype))
  return jax.lax.platform_dependent(x, leaf, cuda=whole, default=by_halves)


def whole(x, leaf: Leaf):
  return jnp.einsum('...i,io->...o', x, _unpacked(leaf, x.dtype))


def _unpacked(leaf: Leaf, dtype):
  """`[in, out]`."""
  packed = blocks.pairs(leaf.codes, leaf.block)
  both = blocks.interleave(*(leaf.part(packed, half, dtype) for half in (0, 1)))
  return both.reshape(-1, both.shape[-1])


def by_halves(x, leaf: Leaf):
  """The even blocks and the odd blocks are two products, added in float32: no nibble is
  moved sideways, and each unpacking fuses into its product where XLA can. The second
  starts after the first, or XLA would unpack both at once and write them everywhere.
  """
  even, odd = _halves(x, leaf.block)
  packed = blocks.pairs(leaf.codes, leaf.block)
  first = _times(even, leaf.part(packed, 0, x.dtype))
  first, packed = jax.lax.optimization_barrier((first, packed))
  return (first + _times(odd, leaf.part(packed, 1, x.dtype))).astype(x.dtype)


def is_split(x, leaf: Leaf, inp: str | None) -> bool:
  """Whether each device multiplies its own inputs before the sums are added up.

  Left to itself, the partitioner adds both products of `by_halves` up over the
  devices, in float32, and gathers all of x where the blocks of a matrix do not divide
  (`down` of 7B over 8). Exchanging the parts of such a matrix pays with many rows.
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


def split(x, leaf: Leaf | Layer):
  """`product` over `tensor`: sums of a device in float32, over devices in x's dtype."""

  def local(x, part):
    if isinstance(part, jax.Array):
      y = jnp.einsum('...i,io->...o', x, part)
    else:
      y = _plain(x, part)
    return jax.lax.psum(y, TENSOR)

  return _on_each(local, x, leaf, PartitionSpec(*(None,) * (x.ndim - 1), TENSOR), ())


def _split_gradient(grad, leaf: Leaf | Layer):
  """Each device has the gradient of its inputs; nothing is added up."""

  def local(grad, part):
    if isinstance(part, jax.Array):
      return jnp.einsum('...o,io->...i', grad, part)
    return _gradient(grad, part)

  out = (*(None,) * (grad.ndim - 1), TENSOR)
  return _on_each(local, grad, leaf, PartitionSpec(), out)


def _on_each(local, x, leaf: Leaf | Layer, where: PartitionSpec, out: tuple):
  """`local(x, part)` on each device of the axis `tensor`.

  part: the leaf of its inputs, `[out, in / ways]`. Where blocks would be cut, leaves
  are held split by their outputs (`bases.leaf_layout`): they are unpacked, exchanged,
  and part is an array, `[in / ways, out]`.
  """
  leaf = leaf.cut() if isinstance(leaf, Layer) else leaf
  ways = jax.sharding.get_abstract_mesh().shape[TENSOR]
  features, inputs = leaf.shape
  by_input = _whole_pairs(leaf, ways)
  held = PartitionSpec(TENSOR) if by_input else PartitionSpec(None, TENSOR)

  def run(x, codes, scales):
    if by_input:
      return local(x, leaf.with_scales(codes, scales, (features, inputs // ways)))
    part = leaf.with_scales(codes, scales, (features // ways, inputs))
    unpacked = jnp.swapaxes(part.dequantize(x.dtype), -1, -2)
    return local(
      x, jax.lax.all_to_all(unpacked, TENSOR, split_axis=0, concat_axis=1, tiled=True)
    )

  return jax.shard_map(
    run,
    in_specs=(where, held, held),
    out_specs=PartitionSpec(*out),
    axis_names={TENSOR},
    check_vma=False,
  )(x, leaf.codes, leaf.scales())


def _whole_pairs(leaf: Leaf, ways: int) -> bool:
  """Whether the inputs divide over devices without cutting a pair of blocks."""
  return leaf.shape[1] % (2 * leaf.block * ways) == 0


def _forward(x, leaf: Leaf | Layer, inp):
  return _product(x, leaf, inp), leaf


def _backward(inp, leaf: Leaf | Layer, grad):
  """The leaf is all that was kept; it has no gradient."""
  stored = leaf.stack if isinstance(leaf, Layer) else leaf
  gradient = _split_gradient if is_split(grad, stored, inp) else _gradient
  return gradient(grad, leaf), None


def _gradient(grad, leaf: Leaf | Layer):
  leaf = leaf.cut() if isinstance(leaf, Layer) else leaf
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...o,oi->...i', grad, leaf.dequantize(grad.dtype))
  return jax.lax.platform_dependent(
    grad, leaf, cuda=gradient_whole, default=gradient_by_halves
  )


def gradient_whole(grad, leaf: Leaf):
  return jnp.einsum('...o,io->...i', grad, _unpacked(leaf, grad.dtype))


def gradient_by_halves(grad, leaf: Leaf):
  packed = blocks.pairs(leaf.codes, leaf.block)
  halves = [
    jnp.einsum('...o,pto->...pt', grad, leaf.part(packed, half, grad.dtype))
    for half in (0, 1)
  ]
  return jnp.stack(halves, axis=-2).reshape(*grad.shape[:-1], leaf.shape[1])


_product.defvjp(_forward, _backward)


def _times(x, w):
  """x `[..., in / 2]`, w `[pairs, size, out]`, as one plain matrix product."""
  w = w.reshape(-1, w.shape[-1])
  return jnp.einsum('...i,io->...o', x, w, preferred_element_type=jnp.float32)


def _halves(x, size: int):
  """Inputs of the even and of the odd blocks, `[..., in / 2]` each."""
  split = x.reshape(*x.shape[:-1], -1, 2, size)
  half = (*x.shape[:-1], x.shape[-1] // 2)
  return split[..., 0, :].reshape(half), split[..., 1, :].reshape(half)
