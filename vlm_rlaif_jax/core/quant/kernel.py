"""A Triton kernel for x Wᵀ with few rows of x and W in NF4, for NVIDIA GPUs.

    part[s, rows, 64 j ..] = sum over the s-th share of the inputs of x Wᵀ
    y = sum_s part[s]

XLA for GPUs writes the unpacked weight to device memory and reads it again. Here a
program (j, s) reads 64 x 64 bytes, two neighboring blocks of 64 outputs, and their
scales, and unpacks them next to the tensor cores, rounding the weight as `Nf4.part`
does. The stack of layers is read in place: slicing out a layer for a kernel would copy
it.

The kernel is bound by latency, not by bandwidth: on an H200 many small programs, as
here, were faster than half as many with twice the columns, and cuBLAS on 16-bit weights
was faster still.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from vlm_rlaif_jax.core.quant import blocks, dynamic, nf4

ROWS = 128  # the most rows of x; more would spill registers
COLUMNS = 64  # outputs of a program
TILE_ROWS = 16  # rows of a tensor core's tile
PROGRAMS = 1056  # programs of a launch, about: eight per multiprocessor of an H200


def product(
  x: jax.Array, leaf: nf4.Nf4, index: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """Multiplies x `[rows, in]` by layer `index` of a stack `[L, out, in]`.

  Args:
    x: bfloat16 or float16, at most `ROWS` rows.
    leaf: a stack that is not flat (see `blocks`), `out` a multiple of `COLUMNS`.
    index: `int32[]`.
    interpret: whether to run the kernel on any device, slowly.

  Returns:
    `[rows, out]` in the dtype of x.
  """
  rows, inputs = x.shape
  outputs = leaf.shape[0]
  tiles, pairs = outputs // COLUMNS, inputs // (2 * nf4.BLOCK)
  share = -(-pairs // max(1, PROGRAMS // tiles))
  shares = -(-pairs // share)
  height = max(TILE_ROWS, pl.next_power_of_2(rows))

  def whole(array: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda j, s: (0,) * array.ndim)

  tables = (jnp.asarray(nf4.LEVELS), jnp.asarray(dynamic.values()))
  operands = (jnp.reshape(index, 1), leaf, *tables)
  part = pl.pallas_call(
    functools.partial(_program, rows=rows, share=share),
    grid=(tiles, shares),
    in_specs=[
      pl.BlockSpec((height, inputs), lambda j, s: (0, 0)),
      *jax.tree.map(whole, operands),
    ],
    out_specs=pl.BlockSpec((None, height, COLUMNS), lambda j, s: (s, 0, j)),
    out_shape=jax.ShapeDtypeStruct((shares, rows, outputs), jnp.float32),
    compiler_params=triton.CompilerParams(
      num_warps=4 if height <= 32 else 8,
      num_stages=1,  # more would send every looked-up level through shared memory
    ),
    interpret=interpret,
    name='nf4_product',
  )(x, *operands)
  return jnp.sum(part, axis=0).astype(x.dtype)


def _program(
  x: Any,
  index: Any,
  leaf: nf4.Nf4,
  levels: Any,
  values: Any,
  out: Any,
  *,
  rows: int,
  share: int,
) -> None:
  """Computes one tile of `part`.

  Arguments are references to device memory; x and out are padded to whole tiles.
  """
  column, first = pl.program_id(0) * COLUMNS, pl.program_id(1) * share
  layer, columns = index[0], pl.ds(column, COLUMNS)
  count = leaf.shape[1] // nf4.BLOCK  # blocks of an output
  inside = jnp.arange(x.shape[0])[:, None] < rows

  def scales(block: jax.Array) -> jax.Array:
    absmax = leaf.absmax[layer, block, columns]
    if leaf.scale is None:
      return absmax
    number = (column + jnp.arange(COLUMNS)) * count + block
    scale = leaf.scale[layer, number // dynamic.BLOCK]
    value = values[absmax.astype(jnp.int32)]
    return blocks.as_is(value * scale) + leaf.offset[layer]

  def add(pair: jax.Array, total: jax.Array) -> jax.Array:
    rows_of_pair = pl.ds(pair * nf4.BLOCK, nf4.BLOCK)
    packed = leaf.codes[layer, rows_of_pair, columns].astype(jnp.int32)
    for half in (0, 1):
      block = 2 * pair + half
      inputs = x.at[:, pl.ds(block * nf4.BLOCK, nf4.BLOCK)]
      w = levels[blocks.nibble(packed, half)] * scales(block)[None]
      total += jnp.dot(
        triton.load(inputs, mask=inside, other=0.0),
        w.astype(leaf.dtype).astype(x.dtype),
        preferred_element_type=jnp.float32,
      )
    return total

  last = jnp.minimum(first + share, count // 2)
  none = jnp.zeros((x.shape[0], COLUMNS), jnp.float32)
  triton.store(out, jax.lax.fori_loop(first, last, add, none), mask=inside)
