"""How 4-bit codes lie in memory: blocks along the input axis, two blocks to a byte.

    weight [out, in]   block j of a row: inputs 64 j .. 64 j + 63
    codes  [in / 2, out]   row 64 p + t, column o:
                           low nibble   weight[o, 64 (2p) + t]
                           high nibble  weight[o, 64 (2p + 1) + t]
    scales [in / 64, out]

A byte holds the same place of two neighboring blocks, so a nibble is unpacked without
moving anything sideways: XLA can then dequantize on chip, next to the product. The
output axis runs along the lanes, which a scale is spread over. Both axes shard: `out`
anywhere, `in` in multiples of two blocks.

A matrix whose input axis is not a multiple of two blocks is taken as one long row,
padded with zeros; its blocks cross the rows, as they do in bitsandbytes. It can be
neither sharded along `in` nor multiplied without being unpacked whole.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.settings.build import UserError

DTYPES = ('float32', 'bfloat16', 'float16')


class QuantError(UserError):
  """A weight that cannot be quantized, or tensors that are no quantized weight."""


def check(weight) -> None:
  if weight.ndim < 2 or str(weight.dtype) not in DTYPES:
    raise QuantError(
      f'4 bits: a matrix of {", ".join(DTYPES)} is needed, got '
      f'{weight.dtype}{list(weight.shape)}'
    )


def is_flat(shape: tuple[int, int], size: int) -> bool:
  """Whether a matrix `[out, in]` is held as one long row."""
  return shape[-1] % (2 * size) != 0


def grid(shape: tuple[int, int], size: int) -> tuple[int, int]:
  """(blocks along the input axis, outputs) of the stored matrix."""
  out, inp = shape
  if is_flat(shape, size):
    return 2 * math.ceil(out * inp / (2 * size)), 1
  return inp // size, out


def split(matrix, size: int):
  """`[..., out, in]` -> blocks `[..., in / size, size, out]`."""
  xp = namespace(matrix)
  *lead, out, inp = matrix.shape
  if is_flat((out, inp), size):
    count, _ = grid((out, inp), size)
    row = matrix.reshape(*lead, out * inp)
    pad = [(0, 0)] * len(lead) + [(0, count * size - out * inp)]
    return xp.pad(row, pad).reshape(*lead, count, size, 1)
  return xp.moveaxis(matrix.reshape(*lead, out, inp // size, size), -3, -1)


def join(blocks, shape: tuple[int, int]):
  """Blocks `[..., count, size, columns]` -> `[..., out, in]`; undoes `split`."""
  xp = namespace(blocks)
  *lead, count, size, columns = blocks.shape
  out, inp = shape
  if is_flat(shape, size):
    row = blocks.reshape(*lead, count * size)
    return row[..., : out * inp].reshape(*lead, out, inp)
  return xp.moveaxis(blocks, -1, -3).reshape(*lead, columns, count * size)


def pack(codes):
  """Codes below 16, `[..., count, size, out]` -> `uint8[..., count size / 2, out]`."""
  *lead, count, size, out = codes.shape
  packed = codes[..., 0::2, :, :] | (codes[..., 1::2, :, :] << 4)
  return packed.reshape(*lead, count * size // 2, out)


def pairs(packed, size: int):
  """`uint8[..., count size / 2, out]` -> one pair of blocks after the other,
  `[..., count / 2, size, out]`."""
  *lead, rows, out = packed.shape
  return packed.reshape(*lead, rows // size, size, out)


def nibble(packed, half: int):
  """Codes of the even (0) or odd (1) blocks, of the shape of the bytes."""
  return packed >> 4 if half else packed & 15


def interleave(even, odd):
  """Even and odd blocks, `[..., count / 2, size, out]` -> `[..., count, size, out]`."""
  *lead, pairs, size, out = even.shape
  both = namespace(even).stack([even, odd], axis=-3)
  return both.reshape(*lead, 2 * pairs, size, out)


def dequantize(leaf, dtype):
  """A leaf with `part`, `shape` and `block` -> its matrix `[..., out, in]`."""
  packed = pairs(leaf.codes, leaf.block)
  return join(interleave(*(leaf.part(packed, h, dtype) for h in (0, 1))), leaf.shape)


def lookup(table: np.ndarray, index):
  """`table[index]` as a tree of selects: no gather, which TPUs do slowly.

  Args:
    table: float32, a power of two long; index: integers below that.
  """
  values = [np.float32(value) for value in table]
  bit = 0
  while len(values) > 1:
    chosen = (index >> bit) & 1 == 1
    values = [
      jnp.where(chosen, odd, even)
      for even, odd in zip(values[0::2], values[1::2], strict=True)
    ]
    bit += 1
  return values[0]


def as_is(x, known=None):
  """x, in a way that keeps a compiler from folding its making into its use.

  XLA rounds a b + c once where IEEE arithmetic rounds twice, and makes a product of a
  quotient by a constant. A select that only a NaN could turn stands between; for a
  constant x, one on `known`.
  """
  if namespace(x if known is None else known) is np:
    return x
  known = x if known is None else known
  return jnp.where(known == known, x, 0)


def namespace(x):
  """numpy for what is on the host, jax.numpy for what is on a device or traced."""
  return jnp if isinstance(x, jax.Array) else np
