"""NF4 with double quantization (Dettmers et al. 2023), bit-equal to bitsandbytes.

That holds against one PyTorch thread: the mean of the scales is summed in an order that
depends on the number of threads.

    absmax_b = max |w| over a block of 64 inputs
    code     = nearest of 16 quantiles of the normal distribution to w / absmax_b,
               the lower one in a tie
    w       ~= level[code] absmax_b

Bits per weight: 4 + 8/64 + 32/(64 * 256) = 4.127; 4.5 with single-level scales.

Qwix's nf4 (0.1.8) has the same levels and, from float32 weights, gives the same codes
and values as ours with single-level scales. From 16-bit weights it divides in 16 bits
and keeps 16-bit scales: a fifth of the values differ. It has no double quantization.
"""

import functools
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.core.quant import blocks, dynamic
from vlm_rlaif_jax.core.quant.blocks import Array, QuantError, namespace

BLOCK = 64
CHUNK = (
  1 << 18
)  # weights that the host quantizes at a time, so that they fit its caches
LEVELS = np.array(
  [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
  ],
  np.float32,
)  # fmt: skip
BOUNDS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
MIN_ABSMAX = np.float32(1e-38)  # a smaller absmax is replaced by it


@flax.struct.dataclass
class Nf4:
  """A weight `[..., out, in]`; leading axes are stacked layers.

  Attributes:
    codes: `uint8[..., in / 2, out]`, two codes a byte, see `blocks`.
    absmax: `uint8[..., in / 64, out]`, or float32 where the scales are single-level.
    scale: `float32[..., blocks / 256]` of the second level, blocks counted along the
      rows of `[out, in / 64]`; None where the scales are single-level.
    offset: `float32[...]`, the mean of absmax; or None.
    shape: (out, in).
    dtype: of the original weight; dequantized values are rounded to it first.
  """

  codes: Any  # each field is an array, a `ShapeDtypeStruct` or a sharding
  absmax: Any
  scale: Any
  offset: Any
  shape: tuple[int, int] = flax.struct.field(pytree_node=False)
  dtype: str = flax.struct.field(pytree_node=False, default='float32')

  block = BLOCK

  def scales(self) -> Array:
    """Returns absmax of every block, `float32[..., in / 64, out]`."""
    if self.scale is None:
      return self.absmax
    xp = namespace(self.codes)
    count, out = self.absmax.shape[-2:]
    value = _dynamic_value(self.absmax)
    wide = dynamic.spread(self.scale, count * out)
    wide = wide.reshape(*wide.shape[:-1], out, count)
    product = blocks.as_is(value * xp.swapaxes(wide, -1, -2))
    return product + self.offset[..., None, None]

  def with_scales(self, codes: Array, scales: Array, shape: tuple[int, int]) -> 'Nf4':
    """Returns a part of this matrix, given its codes and its part of `scales()`."""
    return Nf4(codes, scales, None, None, shape=shape, dtype=self.dtype)

  def part(self, packed: Array, half: int, dtype: Any) -> Array:
    """Returns the weights of the even (0) or odd (1) blocks.

    Args:
      packed: `blocks.pairs` of the codes.
    """
    value = _level(blocks.nibble(packed, half)) * self.scales()[..., half::2, None, :]
    return value.astype(self.dtype).astype(dtype)

  def dequantize(self, dtype: Any = jnp.float32) -> Array:
    """Returns the matrix, `[..., out, in]`."""
    return blocks.dequantize(self, dtype)


def quantize(
  weight: Array, double_quant: bool = True, through: str | None = None
) -> Nf4:
  """Quantizes `[..., out, in]`: numpy arrays on the host, jax arrays on the device.

  Args:
    weight: float32, bfloat16 or float16.
    double_quant: whether absmax is stored in 8 bits; otherwise in float32.
    through: a dtype that the weight is rounded to first; the reference implementation
      goes through 'float16'.
  """
  blocks.check(weight)
  if through is not None:
    weight = weight.astype(through)
  if isinstance(weight, jax.Array):
    return _on_device(weight, double_quant)
  *lead, out, inp = weight.shape
  layers = [_on_host(layer, double_quant) for layer in weight.reshape(-1, out, inp)]
  return jax.tree.map(lambda *x: np.stack(x).reshape((*lead, *x[0].shape)), *layers)


def dequantize(leaf: Nf4, dtype: Any = jnp.float32) -> Array:
  """Returns the matrix, `[..., out, in]`, rounded to its own dtype and then `dtype`."""
  return leaf.dequantize(dtype)


@functools.partial(jax.jit, static_argnames='double_quant')
def _on_device(weight: jax.Array, double_quant: bool) -> Nf4:
  if weight.ndim > 2:
    return jax.lax.map(lambda layer: _on_device(layer, double_quant), weight)
  codes, absmax = _first_level(blocks.split(weight, BLOCK))
  return _with_scales(blocks.pack(codes), absmax, weight, double_quant)


def _on_host(weight: np.ndarray, double_quant: bool) -> Nf4:
  """Quantizes a matrix some outputs at a time, so that float32 copies stay small."""
  out, inp = weight.shape
  step = out if blocks.is_flat(weight.shape, BLOCK) else max(1, CHUNK // inp)
  parts = [
    _first_level(blocks.split(weight[first : first + step], BLOCK))
    for first in range(0, out, step)
  ]
  codes = np.concatenate([blocks.pack(codes) for codes, _ in parts], axis=-1)
  absmax = np.concatenate([absmax for _, absmax in parts], axis=-1)
  return _with_scales(codes, absmax, weight, double_quant)


def _with_scales(codes: Array, absmax: Array, weight: Array, double_quant: bool) -> Nf4:
  scales = (absmax, None, None)
  if double_quant:
    out, inp = weight.shape
    real = -(-out * inp // BLOCK)  # without the padding of a flat matrix
    in_order = absmax.T.reshape(-1)
    small, scale, offset = dynamic.quantize(in_order[:real])
    small = namespace(small).pad(small, (0, in_order.size - real))
    scales = (small.reshape(absmax.T.shape).T, scale, offset)
  return Nf4(codes, *scales, shape=weight.shape, dtype=str(weight.dtype))


def _first_level(split: Array) -> tuple[Array, Array]:
  """Quantizes blocks `[count, 64, out]`.

  Returns:
    codes of the same shape and absmax `float32[count, out]`.
  """
  xp = namespace(split)
  split = split.astype(np.float32)
  absmax = xp.max(xp.abs(split), axis=-2)
  # Devices flush numbers below `tiny` to zero.
  smallest = MIN_ABSMAX if xp is np else np.finfo(np.float32).tiny
  inverse = 1 / xp.maximum(absmax, smallest)
  unit = xp.clip(split * inverse[..., None, :], -1, 1)
  codes = xp.zeros_like(unit, np.uint8)  # in the memory order of unit, unlike zeros
  for bound in BOUNDS:
    codes += unit > bound
  return codes, absmax


def _level(codes: Array) -> Array:
  return LEVELS[codes] if isinstance(codes, np.ndarray) else _level_on_device(codes)


def _dynamic_value(codes: Array) -> Array:
  if isinstance(codes, np.ndarray):
    return dynamic.values()[codes]
  return _dynamic_on_device(codes)


# With a jit of their own, these long trees of selects are traced once per shape.


@jax.jit
def _level_on_device(codes: jax.Array) -> jax.Array:
  """Looks levels up, on GPUs by a gather.

  There, the gradient would store the constants of a tree of selects, as arrays of the
  shape of the codes, and never use them.
  """
  if target.platform() == 'gpu':
    return jnp.asarray(LEVELS).at[codes].get(mode='promise_in_bounds')
  return blocks.lookup(LEVELS, codes)


@jax.jit
def _dynamic_on_device(codes: jax.Array) -> jax.Array:
  table = dynamic.values()
  return jax.lax.platform_dependent(
    codes, tpu=_dynamic_without_gather, default=lambda codes: jnp.asarray(table)[codes]
  )


def _dynamic_without_gather(codes: jax.Array) -> jax.Array:
  """Looks up the values with half the selects of `blocks.lookup`.

  They are symmetric about code 127, except the last, which is 1.
  """
  table, middle = dynamic.values(), 127
  away = jnp.abs(codes.astype(jnp.int32) - middle)
  value = blocks.lookup(table[middle:-1], away & middle)
  value = jnp.where(away > middle, table[-1], value)
  return jnp.where(codes < middle, -value, value)


# ---------------------------------------------------------------- bitsandbytes


def to_bitsandbytes(leaf: Nf4) -> dict[str, np.ndarray]:
  """Returns the tensors of one matrix by the names that transformers saves them under.

  The first element of a row is in the high nibble, rows follow each other, and the
  scalars are JSON in a uint8 tensor.
  """
  if leaf.codes.ndim != 2:
    raise QuantError(
      f'nf4: export one layer at a time; got a stack of {leaf.codes.shape[:-2]}'
    )
  leaf = jax.tree.map(np.asarray, leaf)
  out, inp = leaf.shape
  packed = blocks.pairs(leaf.codes, BLOCK)
  codes = blocks.interleave(*(blocks.nibble(packed, half) for half in (0, 1)))
  codes = blocks.join(codes, leaf.shape).reshape(-1)
  codes = np.pad(codes, (0, codes.size % 2), constant_values=7)
  real = -(-out * inp // BLOCK)
  tensors = {
    'weight': (codes[0::2] << 4 | codes[1::2])[:, None],
    'weight.absmax': np.ascontiguousarray(leaf.absmax.T).reshape(-1)[:real],
    'weight.quant_map': LEVELS.copy(),
  }
  info = {
    'quant_type': 'nf4', 'blocksize': BLOCK, 'dtype': leaf.dtype, 'shape': [out, inp]
  }  # fmt: skip
  if leaf.scale is not None:
    tensors['weight.nested_absmax'] = leaf.scale
    tensors['weight.nested_quant_map'] = dynamic.values().copy()
    info |= {
      'nested_blocksize': dynamic.BLOCK,
      'nested_dtype': 'float32',
      'nested_offset': float(leaf.offset),
    }
  name = 'weight.quant_state.bitsandbytes__nf4'
  return {**tensors, name: np.frombuffer(json.dumps(info).encode(), np.uint8)}


def from_bitsandbytes(tensors: dict) -> Nf4:
  """Reads one matrix as transformers saves it, without rounding again.

  Args:
    tensors: `weight`, `weight.absmax` and so on, numpy or torch arrays on the CPU; the
      names may have a common prefix.

  Raises:
    QuantError: tensors are missing, of the wrong size or of another 4-bit format.
  """
  suffix = '.quant_state.bitsandbytes__nf4'
  stems = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
  if len(stems) != 1:
    raise QuantError(
      f'nf4: expected one tensor named ...{suffix}, found {len(stems)} among '
      f'{", ".join(sorted(tensors)[:4])}'
    )
  stem = stems[0]

  def read(name: str) -> np.ndarray:
    return np.asarray(tensors[stem + name])

  try:
    info = json.loads(read(suffix).tobytes())
    out, inp = info['shape']
    double = 'nested_offset' in info
    maps = {'.quant_map': LEVELS}
    if double:
      maps['.nested_quant_map'] = dynamic.values()
    other = [name for name, table in maps.items() if not _same(read(name), table)]
    if info['blocksize'] != BLOCK or info.get('nested_blocksize', 256) != 256 or other:
      raise QuantError(
        f'{stem}: blocks of {info["blocksize"]} and {info.get("nested_blocksize")}, '
        f'tables that differ: {other}; supported are blocks of 64 and 256 with the '
        "tables of bitsandbytes' nf4"
      )
    packed = read('').reshape(-1).view(np.uint8)
    absmax = read('.absmax').reshape(-1)
    scale = offset = None
    if double:
      scale = read('.nested_absmax').astype(np.float32)
      offset = np.float32(info['nested_offset'])
  except KeyError as error:
    raise QuantError(f'{stem}: {error.args[0]} is missing among its tensors') from None
  count, columns = blocks.grid((out, inp), BLOCK)
  if packed.size != -(-out * inp // 2) or absmax.size != -(-out * inp // BLOCK):
    raise QuantError(
      f'{stem}: {packed.size} bytes and {absmax.size} scales do not make [{out}, {inp}]'
    )
  codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: out * inp]
  codes = blocks.split(codes.reshape(out, inp), BLOCK)
  absmax = np.pad(absmax, (0, count * columns - absmax.size))
  return Nf4(
    blocks.pack(codes),
    np.ascontiguousarray(absmax.reshape(columns, count).T),
    scale,
    offset,
    shape=(out, inp),
    dtype=info['dtype'],
  )


def _same(table: np.ndarray, expected: np.ndarray) -> bool:
  return table.shape == expected.shape and bool((table == expected).all())
