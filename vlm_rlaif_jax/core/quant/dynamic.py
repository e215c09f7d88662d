"""Double quantization: float32 scales in 8 bits (Dettmers et al. 2022; QLoRA §3).

    offset = mean(absmax);  r = absmax - offset;  scale_b = max |r| over 256 of them
    code = nearest of 256 values to r / scale_b;   absmax ~ value[code] scale_b + offset

The values are the signed dynamic map: seven decades, with twice as many values in each
larger one. Rounding matches bitsandbytes on a CPU bit for bit: r / scale_b is rounded
to the nearest of 65,536 points of [-1, 1] first, and that point to the nearest value.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core.quant.blocks import Array, as_is, namespace

BLOCK = 256
POINTS = 65536
LANES = 8  # float32 numbers in a vector register, for the order of `mean`
ROWS = 4  # vector registers that `mean` accumulates in


@functools.cache
def values() -> np.ndarray:
  """Returns the 256 values in rising order, `float32[256]`."""
  decades = [np.zeros(1, np.float32), np.ones(1, np.float32)]
  for decade in range(7):
    edges = _evenly(0.1, 1.0, 2**decade)
    middle = (edges[:-1] + edges[1:]) / np.float32(2)
    decades += [sign * np.float32(10.0 ** (decade - 6)) * middle for sign in (1, -1)]
  return np.sort(np.concatenate(decades))


def _evenly(first: float, last: float, steps: int) -> np.ndarray:
  """Returns `steps + 1` equally spaced points, as `torch.linspace` computes them.

  Each is computed from the nearer end and rounded to float32 once.
  """
  start, end = np.float32(first), np.float32(last)
  step = np.float64((end - start) / np.float32(steps))
  index = np.arange(steps + 1)
  points = np.where(
    index < (steps + 1) // 2, start + step * index, end - step * (steps - index)
  )
  return points.astype(np.float32)


@functools.cache
def _first_points() -> np.ndarray:
  """Returns the first point that rounds to each code but 0, `float32[255]`."""
  points = np.linspace(-1, 1, POINTS)
  middle = (values()[:-1].astype(np.float64) + values()[1:]) / 2
  return np.searchsorted(points, middle).astype(np.float32)


def quantize(absmax: Array) -> tuple[Array, Array, Array]:
  """Quantizes positive scales, `float32[n]`.

  Returns:
    codes `uint8[n]`, scales of each 256 of them `float32[ceil(n / 256)]`, and the
    offset `float32[]`.
  """
  xp = namespace(absmax)
  count = absmax.shape[0]
  offset = mean(absmax)
  rest = xp.pad(absmax - offset, (0, -count % BLOCK)).reshape(-1, BLOCK)
  scale = xp.max(xp.abs(rest), axis=1)
  with np.errstate(over='ignore'):
    inverse = 1 / xp.where(scale == 0, np.float32(1), scale)
  unit = xp.clip(rest * inverse[:, None], -1, 1)
  point = as_is((unit + 1) * np.float32(0.5) * np.float32(POINTS - 1))
  point = xp.floor(point + np.float32(0.5))
  codes = xp.searchsorted(xp.asarray(_first_points()), point, side='right')
  codes = xp.where(scale[:, None] == 0, 0, codes).astype(xp.uint8)
  return codes.reshape(-1)[:count], scale, offset


def spread(scale: Array, count: int) -> Array:
  """Repeats each scale 256 times, `float32[..., ceil(n / 256)]` -> `[..., count]`."""
  wide = namespace(scale).repeat(scale, BLOCK, axis=-1)
  return wide[..., :count]


def mean(x: Array) -> Array:
  """Returns the mean of `float32[n]`, summed in PyTorch's order on one x86 thread.

  The last bit of a mean depends on the order, and the codes depend on the mean: in
  another order, some codes of a large matrix would differ. Sums run down 4 x 8 columns,
  in groups of 16 (or more) that are added up level by level.
  """
  xp = namespace(x)
  count = x.shape[0]
  lanes = LANES if count >= LANES else 1
  width = ROWS * lanes
  depth = count // width
  step = 1 << max(4, int(np.ceil(np.log2(max(depth, 1)))) // 4)
  rows = x[: depth * width].reshape(depth, width)
  levels = []
  for _ in range(3):
    grouped = rows.shape[0] // step * step
    levels.append(_sum_in_order(rows[grouped:], xp))
    groups = rows[:grouped].reshape(-1, step, width)
    rows = _sum_in_order(xp.swapaxes(groups, 0, 1), xp)
  levels.append(_sum_in_order(rows, xp))
  register = functools.reduce(lambda a, b: a + b, levels).reshape(ROWS, lanes)
  vectors = x[depth * width : count // lanes * lanes].reshape(-1, lanes)
  first = functools.reduce(lambda a, b: a + b, vectors, register[0])
  sums = functools.reduce(lambda a, b: a + b, register[1:], first)
  tail = x[count // lanes * lanes :]
  total = functools.reduce(lambda a, b: a + b, [*tail, *sums], xp.float32(0))
  return total / as_is(np.float32(count), total)


def _sum_in_order(rows: Array, xp: Any) -> Array:
  """Sums over the first axis, strictly one row after the other."""
  return functools.reduce(
    lambda a, b: a + b, rows, xp.zeros(rows.shape[1:], jnp.float32)
  )
