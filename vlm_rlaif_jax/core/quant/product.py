"""x Wᵀ with W in 4 bits: gradients go to x only, and W is unpacked again for them.

    which product                    when
    fused (`kernel`)                 NF4, for an NVIDIA GPU, see `is_fused`: decoding
    plain                            everything else, and every gradient

XLA fuses the unpacking of the plain one on v5e; for v5p and GPUs it writes halves of
matrices to memory: cheap beside the thousands of rows of training, dear in decoding. A
v5p has no kernel: where there is room, `nf4_bf16` is the residency to decode with. None
of this was timed on a GPU or a TPU; `launch.bench quant` does it.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vlm_rlaif_jax.core.quant import blocks
from vlm_rlaif_jax.core.quant.int4 import Int4
from vlm_rlaif_jax.core.quant.nf4 import Nf4

Leaf = Nf4 | Int4


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


@jax.custom_vjp
def product(x, leaf: Leaf | Layer):
  """`[..., in]` times a quantised `[out, in]` -> `[..., out]` in the dtype of x.

  Under a mesh, the first axis of x is the batch.
  """
  if not is_fused(x, leaf.stack if isinstance(leaf, Layer) else leaf):
    return _plain(x, leaf)
  return jax.lax.platform_dependent(x, leaf, cuda=fused, default=_plain)


def is_fused(x, leaf: Leaf) -> bool:
  """Whether a program for an NVIDIA GPU takes the kernel.

  Few rows on each device, whole tiles, and a leaf that every device has whole: to the
  partitioner a kernel is opaque, so over more than the `data` axis the plain product
  stays. Programs for other targets never take it.
  """
  if not isinstance(leaf, Nf4):
    return False
  # Not at the top: Pallas takes a while to load, and most runs have no use for it.
  from vlm_rlaif_jax.core.quant import kernel

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
  """The even blocks and the odd blocks are two products, added in float32: no nibble is
  moved sideways, and each unpacking fuses into its product where XLA can. The second
  starts after the first, or XLA would unpack both at once and write them everywhere.
  """
  leaf = leaf.cut() if isinstance(leaf, Layer) else leaf
  if blocks.is_flat(leaf.shape, leaf.block):
    return jnp.einsum('...i,oi->...o', x, leaf.dequantize(x.dtype))
  even, odd = _halves(x, leaf.block)
  packed = blocks.pairs(leaf.codes, leaf.block)
  first = _times(even, leaf.part(packed, 0, x.dtype))
  first, packed = jax.lax.optimization_barrier((first, packed))
  return (first + _times(odd, leaf.part(packed, 1, x.dtype))).astype(x.dtype)


def _forward(x, leaf: Leaf | Layer):
  return product(x, leaf), leaf


def _backward(leaf: Leaf | Layer, grad):
  """The leaf is all that was kept; it has no gradient."""
  leaf = leaf.cut() if isinstance(leaf, Layer) else leaf
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
