"""Computes `cache.attend` on NVIDIA GPUs, reading only filled slots, once (Triton).

    part[s, b, g] = sum over the s-th share of the slots of exp(q.k - top) v
    out           = sum_s exp(top_s - top) part_s / sum_s exp(top_s - top) total_s

A program reads a share of one row's slots for some neighboring heads, in tiles of
`TILE` slots x `HEADS` heads x K numbers. The heads of a slot are contiguous in memory,
and a thread loads 16 bytes. All slots of a tile are in the registers of the threads
that have their heads, so that maxima and sums over slots need no exchange between
threads. There is no matrix product: with one query for each key head it would have one
row, and the multiply-adds take a fraction of the time of the loads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from vlm_rlaif_jax.nn.attention import MASKED
from vlm_rlaif_jax.nn.cache_int8 import Int8

TILE = 8  # slots
HEADS = 8  # at most
WARPS = 4
PROGRAMS = 1024  # about as many in all: eight a multiprocessor of an H100
MOST_SHARES = 16


def entire(x: jax.Array) -> pl.BlockSpec:
  """Returns the specification of an array that every program sees as a whole."""
  return pl.BlockSpec(x.shape, lambda i, s: (0,) * x.ndim)


def f32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def attend(
  q: jax.Array,
  keys: jax.Array | Int8,
  values: jax.Array | Int8,
  start: jax.Array,
  stop: jax.Array,
  *,
  tile: int = TILE,
  heads: int = HEADS,
  shares: int = 0,
  warps: int = WARPS,
  interpret: bool = False,
) -> jax.Array:
  """Computes `cache.attend`, with as many key heads as query heads.

  Args:
    tile, heads, warps: how the work is split.
    shares: programs that share a row's slots; 0: as many as give `PROGRAMS`.
    interpret: whether to run it on any device, slowly.
  """
  batch, count, size = q.shape
  while count % heads:
    heads //= 2
  groups = count // heads
  shares = shares or min(max(1, PROGRAMS // (batch * groups)), MOST_SHARES)

  def block(i: Any, s: Any) -> tuple:
    return s, i // groups, i % groups

  arrays = [start, stop, q, *jax.tree.leaves((keys, values))]
  scalar = pl.BlockSpec((None, None, heads), block)
  wide = pl.BlockSpec((None, None, heads, size), lambda i, s: (*block(i, s), 0))
  part, top, total = pl.pallas_call(
    functools.partial(_program, heads=heads, groups=groups, shares=shares, tile=tile),
    grid=(batch * groups, shares),
    in_specs=[entire(x) for x in arrays],
    out_specs=[wide, scalar, scalar],
    out_shape=[
      f32(shares, batch, count, size),
      f32(shares, batch, count),
      f32(shares, batch, count),
    ],
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name='cache_attend',
  )(*arrays)
  return pl.pallas_call(
    functools.partial(_add_up, heads=heads, groups=groups),
    grid=(batch * groups,),
    in_specs=[
      pl.BlockSpec(x.shape, lambda i, n=x.ndim: (0,) * n) for x in (part, top, total)
    ],
    out_specs=pl.BlockSpec((None, heads, size), lambda i: (i // groups, i % groups, 0)),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name='cache_add_up',
  )(part, top, total)


def _add_up(part: Any, top: Any, total: Any, out: Any, *, heads: int, groups: int):
  """Adds the shares of a row in one kernel; XLA would launch two.

  Args:
    part, top, total, out: references to device memory.
  """
  row = pl.program_id(0) // groups
  here = pl.ds((pl.program_id(0) % groups) * heads, heads)
  mixed = jnp.zeros(out.shape, jnp.float32)
  most, count = jnp.full(heads, MASKED, jnp.float32), jnp.zeros(heads, jnp.float32)
  for share in range(part.shape[0]):
    new = jnp.maximum(most, top[share, row, here])
    shrink, grow = jnp.exp(most - new), jnp.exp(top[share, row, here] - new)
    mixed = mixed * shrink[:, None] + part[share, row, here, :] * grow[:, None]
    count, most = count * shrink + total[share, row, here] * grow, new
  count = jnp.maximum(count, jnp.finfo(jnp.float32).tiny)
  out[...] = (mixed / count[:, None]).astype(out.dtype)


def _program(
  start: Any,
  stop: Any,
  q: Any,
  *references: Any,
  heads: int,
  groups: int,
  shares: int,
  tile: int,
):
  """Attends to one share of a row's slots.

  Args:
    start, stop, q, references: to device memory; the last are keys and values, each
      with its scales if it is in 8 bits, and the results.
  """
  *cache, out, top, total = references
  keys, *key_scales = cache[: len(cache) // 2]
  values, *value_scales = cache[len(cache) // 2 :]
  row = pl.program_id(0) // groups
  here = pl.ds((pl.program_id(0) % groups) * heads, heads)
  first, last = start[row], stop[row]
  begin, end = first // tile, (last + tile - 1) // tile
  share = (jnp.maximum(end - begin, 0) + shares - 1) // shares
  begin = begin + pl.program_id(1) * share
  end = jnp.minimum(begin + share, end)
  query = q[row, here, :].astype(jnp.float32) * q.shape[-1] ** -0.5

  def add(i: jax.Array, carry: tuple) -> tuple:
    mixed, most, count = carry
    slots = pl.ds(i * tile, tile)
    k, v = keys[row, slots, here, :], values[row, slots, here, :]
    score = jnp.sum(k.astype(jnp.float32) * query[None], axis=2)  # [tile, heads]
    for scale in key_scales:
      score = score * scale[row, slots, here]
    slot = i * tile + jnp.arange(tile)
    filled = ((slot >= first) & (slot < last))[:, None]
    score = jnp.where(filled, score, MASKED)
    new = jnp.maximum(most, jnp.max(score, axis=0))
    weight = jnp.where(filled, jnp.exp(score - new[None]), 0.0)
    shrink = jnp.exp(most - new)
    scaled = weight
    for scale in value_scales:
      scaled = scaled * scale[row, slots, here]
    read = jnp.sum(scaled[:, :, None] * v.astype(jnp.float32), axis=0)
    return (
      mixed * shrink[:, None] + read,
      new,
      count * shrink + jnp.sum(weight, axis=0),
    )

  none = (
    jnp.zeros((heads, q.shape[-1]), jnp.float32),
    jnp.full(heads, MASKED, jnp.float32),
    jnp.zeros(heads, jnp.float32),
  )
  out[...], top[...], total[...] = jax.lax.fori_loop(begin, end, add, none)
