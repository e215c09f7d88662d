"""The keys and values of one layer, and one new token's attention over them.

    slots   0 ...... start | start ...... stop - 1 | stop ......... S - 1
            left pads      | what the token sees   | still empty

A layer has arrays of its own, `[B, S, G, K]`, row major: a slot is `G x K` numbers in a
row, written in place, and nothing has to be cut out of a stack of layers. S is a
multiple of `STEP`, by which a kernel reads it and XLA's loads are wide.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.nn.attention import MASKED

STEP = 128


def slots(length: int) -> int:
  """The least multiple of `STEP` that holds so many tokens."""
  return -(-length // STEP) * STEP


def write(cache, new, position):
  """Keys or values `[B, 1, G, K]` of a token into slot `position` of `[B, S, G, K]`."""
  return jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=1)


def attend(q, keys, values, start, stop):
  """softmax(q kᵀ / sqrt(K)) v over the slots start <= s < stop of each row.

  By the kernel on NVIDIA GPUs, see `has_kernel`, which reads no other slots; else by
  XLA, which reads them all.

  Args:
    q: `[B, H, K]`; keys, values: `[B, S, G, K]`, G dividing H.
    start, stop: `int32[B]`; a row with stop 0 is read by nobody, and costs the kernel
      nothing.

  Returns:
    `[B, H, K]`; of a row that sees nothing, anything finite.
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


def has_kernel(q, keys) -> bool:
  """Whether the program being traced takes the kernel.

  On NVIDIA GPUs, in 16 bits, with a key head for each query head (a product of several
  queries would want the tensor cores, which the kernel does not use), and where the
  batch alone is split: to the partitioner a kernel is opaque.
  """
  mesh = jax.sharding.get_abstract_mesh()
  whole = mesh.empty or mesh.size == mesh.shape.get('data', 1)
  size = q.shape[-1]
  return (
    target.platform() == 'gpu'
    and _pallas()
    and whole
    and q.shape[1] == keys.shape[2]
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and size & (size - 1) == 0
    and keys.shape[1] % STEP == 0
  )


@functools.cache
def _pallas() -> bool:
  """Whether this JAX has Pallas's Triton, whose end is announced."""
  try:
    from vlm_rlaif_jax.nn import cache_kernel  # noqa: F401
  except ImportError:
    return False
  return True


def by_xla(q, keys, values, start, stop):
  """`attend` in plain operations; scores and sums in float32."""
  batch, length, groups, size = keys.shape
  grouped = q.reshape(batch, groups, -1, size)
  score = jnp.einsum(
    'bgrk,bsgk->bgrs', grouped, keys, preferred_element_type=jnp.float32
  )
  slot = jnp.arange(length)[None]
  seen = (slot >= start[:, None]) & (slot < stop[:, None])
  score = jnp.where(seen[:, None, None], score * size**-0.5, MASKED)
  weight = jnp.exp(score - jnp.max(score, -1, keepdims=True))
  total = jnp.sum(weight, -1, keepdims=True)
  mixed = jnp.einsum(
    'bgrs,bsgk->bgrk',
    weight.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  return (mixed / total).astype(q.dtype).reshape(q.shape)
