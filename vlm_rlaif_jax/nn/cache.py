"""Stores keys and values of one layer, and attends to them with one new token.

    slots   0 ...... start | start ...... stop - 1 | stop ......... S - 1
            left pads      | what the token sees   | still empty

Every layer has its own arrays, `[B, S, G, K]`, row-major: a slot is `G x K` contiguous
numbers, written in place, and no step slices a stack of layers. S is a multiple of
`STEP`, so that kernels read whole tiles and XLA uses wide loads. Either may be in 8
bits, see `cache_int8`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.nn import cache_int8
from vlm_rlaif_jax.nn.attention import MASKED
from vlm_rlaif_jax.nn.cache_int8 import Int8

STEP = 128
MOST_QUERIES = 8  # of a key head, in the kernel


def slots(length: int) -> int:
  """Returns the least multiple of `STEP` that is not below a number of tokens."""
  return -(-length // STEP) * STEP


def write(
  cache: jax.Array | Int8, new: jax.Array, position: jax.Array | int
) -> jax.Array | Int8:
  """Writes keys or values `[B, 1, G, K]` into slot `position` of `[B, S, G, K]`."""
  return jax.tree.map(
    lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis=1),
    cache,
    cache_int8.quantize(new) if isinstance(cache, Int8) else new,
  )


def attend(
  q: jax.Array,
  keys: jax.Array | Int8,
  values: jax.Array | Int8,
  start: jax.Array,
  stop: jax.Array,
) -> jax.Array:
  """softmax(q kᵀ / sqrt(K)) v over the slots start <= s < stop of each row.

  On NVIDIA GPUs a kernel computes it that reads no other slots, see `has_kernel`;
  elsewhere XLA, which reads all slots.

  Args:
    q: `[B, H, K]`; keys, values: `[B, S, G, K]`, G dividing H.
    start, stop: `int32[B]`; for a row with stop 0 the kernel reads nothing.

  Returns:
    `[B, H, K]`; finite, but arbitrary, in rows without a slot.
  """
  if not has_kernel(q, keys):
    return by_xla(q, keys, values, start, stop)
  from vlm_rlaif_jax.nn import cache_kernel  # Pallas takes a while to load

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.shape.get('data', 1) == 1:
    return cache_kernel.attend(q, keys, values, start, stop)
  rows = PartitionSpec('data')
  return jax.shard_map(
    cache_kernel.attend, in_specs=(rows,) * 5, out_specs=rows, check_vma=False
  )(q, keys, values, start, stop)


def has_kernel(q: jax.Array, keys: jax.Array | Int8) -> bool:
  """Returns whether the program being traced uses the kernel.

  It does on NVIDIA GPUs, in 16 bits, with few queries for each key head (products of
  many belong on the tensor cores, which the kernel does not use), and where only the
  batch is split, because the partitioner cannot split a kernel.
  """
  mesh = jax.sharding.get_abstract_mesh()
  whole = mesh.empty or mesh.size == mesh.shape.get('data', 1)
  size, each = q.shape[-1], q.shape[1] // keys.shape[2]
  return (
    target.platform() == 'gpu'
    and _pallas()
    and whole
    and each <= MOST_QUERIES
    and each & (each - 1) == 0  # kernels have powers of two
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and size & (size - 1) == 0
    and keys.shape[1] % STEP == 0
  )


@functools.cache
def _pallas() -> bool:
  """Returns whether this JAX has Pallas for Triton, which is deprecated."""
  try:
    from vlm_rlaif_jax.nn import cache_kernel  # noqa: F401
  except ImportError:
    return False
  return True


def by_xla(
  q: jax.Array,
  keys: jax.Array | Int8,
  values: jax.Array | Int8,
  start: jax.Array,
  stop: jax.Array,
) -> jax.Array:
  """Computes `attend` in plain operations, scores and sums in float32."""
  batch, length, groups, size = keys.shape
  grouped = q.reshape(batch, groups, -1, size)
  score = jnp.einsum(
    'bgrk,bsgk->bgrs',
    grouped,
    cache_int8.numbers(keys, q.dtype),
    preferred_element_type=jnp.float32,
  )
  if isinstance(keys, Int8):
    score = score * jnp.swapaxes(keys.scale, 1, 2)[:, :, None]
  slot = jnp.arange(length)[None]
  mask = (slot >= start[:, None]) & (slot < stop[:, None])
  score = jnp.where(mask[:, None, None], score * size**-0.5, MASKED)
  weight = jnp.exp(score - jnp.max(score, -1, keepdims=True))
  total = jnp.sum(weight, -1, keepdims=True)
  if isinstance(values, Int8):
    weight = weight * jnp.swapaxes(values.scale, 1, 2)[:, :, None]
  mixed = jnp.einsum(
    'bgrs,bsgk->bgrk',
    weight.astype(q.dtype),
    cache_int8.numbers(values, q.dtype),
    preferred_element_type=jnp.float32,
  )
  return (mixed / total).astype(q.dtype).reshape(q.shape)
