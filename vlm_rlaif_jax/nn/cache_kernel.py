"""Computes `cache.attend` on NVIDIA GPUs, reading only filled slots, once (Triton).

    part[s, b, g] = sum over the s-th share of the slots of exp(q.k - top) v
    out           = sum_s exp(top_s - top) part_s / sum_s exp(top_s - top) total_s

A program reads a share of one row's slots for some neighboring heads, in tiles of
`TILE` slots x `HEADS` heads x K numbers. The heads of a slot are contiguous in memory,
and a thread loads 16 bytes. All slots of a tile are in the registers of the threads
that have their heads, so that maxima and sums over slots need no exchange between
threads. There is no matrix product: with one query for each key head it would have one
row, and the multiply-adds take a fraction of the time of the loads. With several, up to
`cache.MOST_QUERIES`, a program has as many fewer heads, and still loads them once.
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
HEADS = 8  # at most, of queries
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
  """Computes `cache.attend`, of at most `cache.MOST_QUERIES` queries for each key head.

  Args:
    tile, heads, warps: how the work is split; heads and warps are those of one query
      for each key head.
    shares: programs that share a row's slots; 0: as many as give `PROGRAMS`, or more
      where they have fewer warps.
    interpret: whether to run it on any device, slowly.
  """
  (batch, queries, size), count = q.shape, keys.shape[2]
  each = queries // count
  heads, warps = max(1, heads // each), max(1, warps // each)
  while count % heads:
    heads //= 2
  groups = count // heads
  programs = PROGRAMS * WARPS // warps
  shares = shares or min(max(1, programs // (batch * groups)), MOST_SHARES)

  def block(i: Any, s: Any) -> tuple:
    return s, i // groups, i % groups, 0

  grouped = q.reshape(batch, count, each, size)
  arrays = [start, stop, grouped, *jax.tree.leaves((keys, values))]
  scalar = pl.BlockSpec((None, None, heads, each), block)
  wide = pl.BlockSpec((None, None, heads, each, size), lambda i, s: (*block(i, s), 0))
  shape = shares, batch, count, each
  part, top, total = pl.pallas_call(
    functools.partial(_program, heads=heads, groups=groups, shares=shares, tile=tile),
    grid=(batch * groups, shares),
    in_specs=[entire(x) for x in arrays],
    out_specs=[wide, scalar, scalar],
    out_shape=[f32(*shape, size), f32(*shape), f32(*shape)],
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name='cache_attend',
  )(*arrays)
  part, top, total = (
    x.reshape(shares, batch, queries, *x.shape[4:]) for x in (part, top, total)
  )
  rows = heads * each
  return pl.pallas_call(
    functools.partial(_add_up, heads=rows, groups=groups),
    grid=(batch * groups,),
    in_specs=[
      pl.BlockSpec(x.shape, lambda i, n=x.ndim: (0,) * n) for x in (part, top, total)
    ],
    out_specs=pl.BlockSpec((None, rows, size), lambda i: (i // groups, i % groups, 0)),
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
  each, size = q.shape[2:]
  query = [q[row, here, r, :].astype(jnp.float32) * size**-0.5 for r in range(each)]

  def add(i: jax.Array, carry: list[tuple]) -> list[tuple]:
    slots = pl.ds(i * tile, tile)
    k = keys[row, slots, here, :].astype(jnp.float32)
    v = values[row, slots, here, :].astype(jnp.float32)
    key_scale = [scale[row, slots, here] for scale in key_scales]
    value_scale = [scale[row, slots, here] for scale in value_scales]
    slot = i * tile + jnp.arange(tile)
    filled = ((slot >= first) & (slot < last))[:, None]
    result = []
    for one, (mixed, most, count) in zip(query, carry, strict=True):
      score = jnp.sum(k * one[None], axis=2)  # [tile, heads]
      for scale in key_scale:
        score = score * scale
      score = jnp.where(filled, score, MASKED)
      new = jnp.maximum(most, jnp.max(score, axis=0))
      weight = jnp.where(filled, jnp.exp(score - new[None]), 0.0)
      shrink = jnp.exp(most - new)
      scaled = weight
      for scale in value_scale:
        scaled = scaled * scale
      read = jnp.sum(scaled[:, :, None] * v, axis=0)
      mixed = mixed * shrink[:, None] + read
      result.append((mixed, new, count * shrink + jnp.sum(weight, axis=0)))
    return result

  none = (
    jnp.zeros((heads, size), jnp.float32),
    jnp.full(heads, MASKED, jnp.float32),
    jnp.zeros(heads, jnp.float32),
  )
  results = jax.lax.fori_loop(begin, end, add, each * [none])
  for r, (mixed, most, count) in enumerate(results):
    out[:, r, :], top[:, r], total[:, r] = mixed, most, count
