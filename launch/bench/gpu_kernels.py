"""A Triton kernel for attention of one new token, which reads filled slots only.

    part[s, b, g] = sum over the s-th share of the slots of exp(q.k - top) v
    out           = sum_s exp(top_s - top) part_s / sum_s exp(top_s - top) total_s

The KV cache is read in place. A program reads the share s of one row's keys of one
head, 16 bytes a thread, and keeps its sum in registers. Each query head has its own key
head, so there is no matrix product: the multiply-adds take less time than the bytes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MASKED = -1e30  # finite: exp of a difference of two is 1 or 0, and never NaN


def whole(array: jax.Array) -> pl.BlockSpec:
  """Returns the specification of an array that every program sees as a whole."""
  return pl.BlockSpec(array.shape, lambda i, s: (0,) * array.ndim)


def float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layer: jax.Array,
  start: jax.Array,
  stop: jax.Array,
  *,
  shares: int = 2,
  block: int = 64,
  warps: int = 8,
  interpret: bool = False,
) -> jax.Array:
  """Computes softmax(q kᵀ / sqrt(K)) v over the slots `start[b] <= s < stop`.

  Args:
    q: `[B, G, K]`.
    k, v: `[L, B, G, S, K]`, row major, S a multiple of `block`.
    layer: `int32[]`, which of the L; start: `int32[B]`; stop: `int32[]`.
    shares: programs that split the slots of a head between them.
    block: slots that a program reads at a time.
    interpret: whether to run the kernel on any device, slowly.

  Returns:
    `[B, G, K]`.
  """
  (batch, heads, dim), slots = q.shape, k.shape[3]
  if slots % block:
    raise ValueError(
      f'the cache has {slots} slots, which is not a multiple of block ({block})'
    )
  share = -(-(slots // block) // shares)

  def head_index(i: Any, s: Any) -> tuple:
    return s, i // heads, i % heads

  numbers = jnp.reshape(layer, 1), start, jnp.reshape(stop, 1)
  scalar = pl.BlockSpec((None, None, None), head_index)
  program = functools.partial(
    _program, heads=heads, share=share, block=block, scale=dim**-0.5
  )
  part, top, total = pl.pallas_call(
    program,
    grid=(batch * heads, shares),
    in_specs=[*map(whole, numbers), whole(q), whole(k), whole(v)],
    out_specs=[
      pl.BlockSpec((None, None, None, dim), lambda i, s: (*head_index(i, s), 0)),
      scalar,
      scalar,
    ],
    out_shape=[
      float32(shares, batch, heads, dim),
      float32(shares, batch, heads),
      float32(shares, batch, heads),
    ],
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name='flash_decode',
  )(*numbers, q, k, v)
  return _add_up(part, top, total).astype(q.dtype)


def _add_up(part: jax.Array, top: jax.Array, total: jax.Array) -> jax.Array:
  """Returns the sum over the shares of a head, as the equations of the module."""
  if part.shape[0] == 1:
    return part[0] / total[0][..., None]
  shrink = jnp.exp(top - jnp.max(top, 0, keepdims=True))
  mixed = jnp.sum(shrink[..., None] * part, 0)
  return mixed / jnp.sum(shrink * total, 0)[..., None]


def _program(
  layer, start, stop, q, k, v, out, top, total,
  *, heads: int, share: int, block: int, scale: float,
) -> None:  # fmt: skip
  row, head = pl.program_id(0) // heads, pl.program_id(0) % heads
  at, first, last = layer[0], start[row], stop[0]
  low = pl.program_id(1) * share
  begin = jnp.maximum(first // block, low)
  end = jnp.minimum((last + block - 1) // block, low + share)
  query = q[row, head, :].astype(jnp.float32) * scale

  def add(i, carry):
    acc, most, count = carry
    slots = pl.ds(i * block, block)
    keys, values = k[at, row, head, slots, :], v[at, row, head, slots, :]
    score = jnp.sum(keys.astype(jnp.float32) * query[None, :], axis=1)
    place = i * block + jnp.arange(block)
    score = jnp.where((place >= first) & (place < last), score, MASKED)
    # Each place of a block has its own maximum, so that no thread waits in the loop.
    new = jnp.maximum(most, score)
    shrink, weight = jnp.exp(most - new), jnp.exp(score - new)
    weight = jnp.where(score > MASKED, weight, 0.0)
    acc = acc * shrink[:, None] + weight[:, None] * values.astype(jnp.float32)
    return acc, new, count * shrink + weight

  zero = (
    jnp.zeros((block, query.shape[0]), jnp.float32),
    jnp.full(block, MASKED, jnp.float32),
    jnp.zeros(block, jnp.float32),
  )
  acc, most, count = lax.fori_loop(begin, end, add, zero)
  peak = jnp.max(most)
  shrink = jnp.exp(most - peak)
  out[...] = jnp.sum(acc * shrink[:, None], axis=0)
  top[...] = peak
  total[...] = jnp.sum(count * shrink)


def reference(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layer: int | jax.Array,
  start: jax.Array,
  stop: jax.Array,
) -> jax.Array:
  """Computes `attend` in float32 with XLA."""
  q, k, v = (x.astype(jnp.float32) for x in (q, k[layer], v[layer]))
  place = jnp.arange(k.shape[2])[None]
  mask = ((place >= start[:, None]) & (place < stop))[:, None]
  score = jnp.einsum('bgk,bgsk->bgs', q, k) * q.shape[-1] ** -0.5
  weight = jax.nn.softmax(jnp.where(mask, score, MASKED), -1)
  return jnp.einsum('bgs,bgsk->bgk', weight, v)
