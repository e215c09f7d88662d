"""The memory layout of 4-bit codes: blocks along the input axis, two blocks to a byte.

    weight [out, in]   block j of a row: inputs 64 j .. 64 j + 63
    codes  [in / 2, out]   row 64 p + t, column o:
                           low nibble   weight[o, 64 (2p) + t]
                           high nibble  weight[o, 64 (2p + 1) + t]
    scales [in / 64, out]

A byte holds the codes at one position of two neighboring blocks, so unpacking moves no
value across lanes: XLA can then dequantize on chip, next to the product. The output
axis runs along the lanes, so a scale is broadcast over sublanes. Both axes can be
sharded: `out` anywhere, `in` in multiples of two blocks.

A matrix whose input axis is not a multiple of two blocks is stored flat: as one long
row, padded with zeros, whose blocks cross the rows of the matrix, as in bitsandbytes.
It cannot be sharded along `in`, and a product unpacks all of it first.

Functions work on numpy arrays (on the host) and on jax arrays (on a device).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.settings.build import UserError

Array = Any  # a numpy array or a jax one
DTYPES = ('float32', 'bfloat16', 'float16')


class QuantError(UserError):
  """A weight that cannot be quantized, or tensors that are no quantized weight."""


def check(weight: Array) -> None:
  """Raises QuantError unless the weight is a matrix of a supported dtype."""
  if weight.ndim < 2 or str(weight.dtype) not in DTYPES:
    raise QuantError(
      f'4-bit quantization needs a matrix of {", ".join(DTYPES)}; got '
      f'{weight.dtype}{list(weight.shape)}'
    )


def is_flat(shape: tuple[int, int], size: int) -> bool:
  """Returns whether a matrix `[out, in]` is stored as one long row."""
  return shape[-1] % (2 * size) != 0


def grid(shape: tuple[int, int], size: int) -> tuple[int, int]:
  """Returns (blocks along the input axis, columns) of the stored matrix."""
  out, inp = shape
  if is_flat(shape, size):
    return 2 * math.ceil(out * inp / (2 * size)), 1
  return inp // size, out


def split(matrix: Array, size: int) -> Array:
  """Splits `[..., out, in]` into blocks `[..., in / size, size, out]`."""
  xp = namespace(matrix)
  *lead, out, inp = matrix.shape
  if is_flat((out, inp), size):
    count, _ = grid((out, inp), size)
    row = matrix.reshape(*lead, out * inp)
    pad = [(0, 0)] * len(lead) + [(0, count * size - out * inp)]
    return xp.pad(row, pad).reshape(*lead, count, size, 1)
  return xp.moveaxis(matrix.reshape(*lead, out, inp // size, size), -3, -1)


def join(blocks: Array, shape: tuple[int, int]) -> Array:
  """Joins blocks `[..., count, size, columns]` to `[..., out, in]`; inverts `split`."""
  xp = namespace(blocks)
  *lead, count, size, columns = blocks.shape
  out, inp = shape
  if is_flat(shape, size):
    row = blocks.reshape(*lead, count * size)
    return row[..., : out * inp].reshape(*lead, out, inp)
  return xp.moveaxis(blocks, -1, -3).reshape(*lead, columns, count * size)


def pack(codes: Array) -> Array:
  """Packs two codes a byte.

  Args:
    codes: `uint8[..., count, size, out]`, below 16.

  Returns:
    `uint8[..., count size / 2, out]`.
  """
  *lead, count, size, out = codes.shape
  packed = codes[..., 0::2, :, :] | (codes[..., 1::2, :, :] << 4)
  return packed.reshape(*lead, count * size // 2, out)


def pairs(packed: Array, size: int) -> Array:
  """Splits packed codes `uint8[..., count size / 2, out]` into pairs of blocks.

  Returns:
    `uint8[..., count / 2, size, out]`.
  """
  *lead, rows, out = packed.shape
  return packed.reshape(*lead, rows // size, size, out)


def nibble(packed: Array, half: int) -> Array:
  """Returns the codes of the even (0) or odd (1) blocks, in the shape of the bytes."""
  return packed >> 4 if half else packed & 15


def interleave(even: Array, odd: Array) -> Array:
  """Merges even and odd blocks.

  Args:
    even, odd: `[..., count / 2, size, out]`.

  Returns:
    `[..., count, size, out]`.
  """
  *lead, pairs, size, out = even.shape
  both = namespace(even).stack([even, odd], axis=-3)
  return both.reshape(*lead, 2 * pairs, size, out)


def dequantize(leaf: Any, dtype: Any) -> Array:
  """Returns the matrix `[..., out, in]` of an `Nf4` or `Int4`."""
  packed = pairs(leaf.codes, leaf.block)
  return join(interleave(*(leaf.part(packed, h, dtype) for h in (0, 1))), leaf.shape)


def lookup(table: np.ndarray, index: jax.Array) -> Any:
  """Returns `table[index]` by a tree of selects; a gather is slow on TPUs.

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


def as_is(x: Any, witness: Any = None) -> Any:
  """Returns x behind a barrier that keeps XLA's rounding that of IEEE arithmetic.

  XLA rounds a b + c once where IEEE arithmetic rounds twice, and turns a quotient by a
  constant into a product. A select on `witness == witness`, which is false for NaNs
  only, keeps it from both.

  Args:
    witness: an array that is not constant, if x is; None: x itself.
  """
  witness = x if witness is None else witness
  if namespace(witness) is np:
    return x
  return jnp.where(witness == witness, x, 0)


def namespace(x: Any) -> Any:
  """Returns jax.numpy for an array on a device or traced, numpy for any other."""
  return jnp if isinstance(x, jax.Array) else np
