"""Matrices in NF4 as they lie in files: ours, and those that transformers saves.

ours     llama/layers/q/w/{codes, absmax, scale, offset}, layers stacked; the file's
         metadata say by way of which dtype they were quantized
theirs   X.weight, X.weight.{absmax, quant_map, nested_absmax, nested_quant_map,
         quant_state.bitsandbytes__nf4}
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.core.quant import blocks, nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.weights import tensor_files
from vlm_rlaif_jax.weights.tensor_files import ConvertError, Stored, Tensor, listed

PARTS = ('codes', 'absmax', 'scale', 'offset')  # the last two only if double
_STATE = '.quant_state.bitsandbytes__nf4'
_META = 'nf4'  # in the metadata of our files


@dataclasses.dataclass(frozen=True)
class Packed:
  """One matrix on disk: `leaf` is what is there, `read` unpacks it.

  Attributes:
    dtype: of the weight before it was quantized; its values are rounded to it.
    double: whether the scales are in 8 bits.
    parts: of an `Nf4` by field, or bitsandbytes' tensors by their full names.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  double: bool
  parts: dict[str, Stored]

  @property
  def place(self) -> tuple[str, int]:
    return next(iter(self.parts.values())).place

  def leaf(self) -> Nf4:
    arrays = {name: part.read() for name, part in self.parts.items()}
    if 'codes' in arrays:
      return _leaf(arrays, self.shape, self.dtype.name)
    return nf4.from_bitsandbytes(arrays)

  def read(self) -> np.ndarray:
    return np.asarray(nf4.dequantize(self.leaf(), self.dtype))


def shapes(name: str, shape: tuple[int, ...], double: bool) -> dict:
  """Names, shapes and dtypes of the parts of `[..., out, in]`."""
  *lead, out, inp = shape
  count, columns = blocks.grid((out, inp), nf4.BLOCK)
  scales = math.ceil(math.ceil(out * inp / nf4.BLOCK) / 256)
  byte, single = np.dtype(np.uint8), np.dtype(np.float32)
  parts = {
    'codes': ((count * nf4.BLOCK // 2, columns), byte),
    'absmax': ((count, columns), byte if double else single),
  }
  if double:
    parts |= {'scale': ((scales,), single), 'offset': ((), single)}
  return {f'{name}/{p}': ((*lead, *s), dtype) for p, (s, dtype) in parts.items()}


def parts_of(name: str, leaf: Nf4) -> dict[str, np.ndarray]:
  """What `shapes` describes."""
  values = {part: getattr(leaf, part) for part in PARTS}
  return {f'{name}/{p}': np.asarray(v) for p, v in values.items() if v is not None}


def joined(flat: Mapping, whole: Mapping[str, tuple[int, ...]], dtype: str) -> dict:
  """Arrays by name -> the same, with one `Nf4` in place of the parts of a matrix.

  Args:
    whole: shapes `[..., out, in]` by name.
  """
  stems = {name.removesuffix('/codes') for name in flat if name.endswith('/codes')}
  out = {n: v for n, v in flat.items() if n.rpartition('/')[0] not in stems}
  for stem in stems:
    parts = {part: flat.get(f'{stem}/{part}') for part in PARTS}
    out[stem] = _leaf(parts, whole[stem], dtype)
  return out


def _leaf(parts: Mapping[str, Any], shape: tuple[int, ...], dtype: str) -> Nf4:
  *_, out, inp = shape
  values: list[Any] = [parts.get(part) for part in PARTS]
  return Nf4(*values, shape=(out, inp), dtype=dtype)


def numpy_dtype(name: str) -> np.dtype:
  if name not in blocks.DTYPES:
    raise ConvertError(f'NF4 of {name!r}, known are {", ".join(blocks.DTYPES)}')
  return np.dtype(getattr(ml_dtypes, name, name))


def metadata(dtype: str) -> dict[str, str]:
  """Of a file of ours; dtype: '' if nothing in it is quantized."""
  return {_META: dtype} if dtype else {}


def dtype_of(paths: Iterable[pathlib.Path]) -> str:
  """By way of which dtype files of ours were quantized; '' if nothing in them is."""
  found = {said for path in paths if (said := tensor_files.metadata(path).get(_META))}
  if len(found) > 1 or not found <= set(blocks.DTYPES):
    raise ConvertError(
      f'metadata {_META!r}: one of {", ".join(blocks.DTYPES)}, found {sorted(found)}'
    )
  return next(iter(found), '')


# ---------------------------------------------------------------- bitsandbytes


def of_bitsandbytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """The same tensors, with one `Packed` in place of those of a matrix in NF4.

  Raises:
    ConvertError: names matrices whose tensors are missing or of another size.
  """
  out, problems = dict(tensors), []
  for name in tensors:
    if not name.endswith(_STATE):
      continue
    stem = name.removesuffix(_STATE)
    try:
      info = json.loads(tensors[name].read().tobytes())
      rows, columns = (int(size) for size in info['shape'])
      dtype = numpy_dtype(info['dtype'])
      double = 'nested_offset' in info
    except (ConvertError, ValueError, KeyError, TypeError, RecursionError) as error:
      problems.append(f'{name} is damaged ({error!r})')
      continue
    count = rows * columns
    absmax = -(-count // nf4.BLOCK)
    sizes = {'': -(-count // 2), '.absmax': absmax, '.quant_map': 16}
    if double:
      sizes |= {'.nested_absmax': -(-absmax // 256), '.nested_quant_map': 256}
    for part, size in sizes.items():
      found = tensors.get(stem + part)
      if found is None:
        problems.append(f'missing {stem}{part}')
      elif math.prod(found.shape) != size:
        problems.append(
          f'{stem}{part} has {math.prod(found.shape)} elements, [{rows}, {columns}] in '
          f'NF4 needs {size}'
        )
    names = [stem, *(stem + part for part in sizes if part), name]
    parts = {n: part for n in names if isinstance(part := out.pop(n, None), Stored)}
    out[stem] = Packed((rows, columns), dtype, double, parts)
  if problems:
    raise ConvertError(f'in NF4: {listed(problems)}')
  return out
