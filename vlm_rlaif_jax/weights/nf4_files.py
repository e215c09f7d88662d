"""Matrices in NF4 in files: those of our bases, and those that transformers saves.

ours     llama/layers/q/w/{codes, absmax, scale, offset}, layers stacked; the file's
         metadata name the dtype by way of which they were quantized
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
from vlm_rlaif_jax.weights import config_fields, safetensors_files
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.json_section import Section
from vlm_rlaif_jax.weights.safetensors_files import Shapes
from vlm_rlaif_jax.weights.tensors import StoredTensor, Tensor

PARTS = ('codes', 'absmax', 'scale', 'offset')  # the last two only if double
_STATE = '.quant_state.bitsandbytes__nf4'
_METADATA = 'nf4'  # key in the metadata of our files
_NESTED = 256  # scales that share one of their own
_QUANTIZATION = (  # fields of `quantization_config`; each matrix carries what matters
  'quant_method', 'load_in_4bit', 'load_in_8bit', '_load_in_4bit', '_load_in_8bit',
  'bnb_4bit_quant_type', 'bnb_4bit_use_double_quant', 'bnb_4bit_compute_dtype',
  'bnb_4bit_quant_storage', 'llm_int8_enable_fp32_cpu_offload',
  'llm_int8_has_fp16_weight', 'llm_int8_skip_modules', 'llm_int8_threshold',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Nf4Tensor:
  """One matrix in NF4 on disk: `leaf` returns it packed, `read` unpacked.

  Attributes:
    dtype: of the weight before it was quantized; its values are rounded to it.
    double: whether the scales are in 8 bits.
    parts: of an `Nf4` by field, or bitsandbytes' tensors by their full names.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  double: bool
  parts: dict[str, StoredTensor]

  @property
  def location(self) -> tuple[str, int]:
    return next(iter(self.parts.values())).location

  def leaf(self) -> Nf4:
    arrays = {name: part.read() for name, part in self.parts.items()}
    if 'codes' in arrays:
      return _leaf(arrays, self.shape, self.dtype.name)
    return nf4.from_bitsandbytes(arrays)

  def read(self) -> np.ndarray:
    return np.asarray(nf4.dequantize(self.leaf(), self.dtype))


def part_shapes(name: str, shape: tuple[int, ...], double: bool) -> Shapes:
  """Returns names, shapes and dtypes of the parts of `[..., out, in]`."""
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


def split_parts(name: str, leaf: Nf4) -> dict[str, np.ndarray]:
  """Returns the arrays that `part_shapes` describes."""
  values = {part: getattr(leaf, part) for part in PARTS}
  return {f'{name}/{p}': np.asarray(v) for p, v in values.items() if v is not None}


def join_parts(
  flat: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, np.ndarray | Nf4]:
  """Returns arrays by name with one `Nf4` in place of the parts of each matrix.

  Args:
    flat: arrays by name, parts of matrices among them.
    shapes: `[..., out, in]` by name of a matrix.
    dtype: by way of which they were quantized.
  """
  stems = {name.removesuffix('/codes') for name in flat if name.endswith('/codes')}
  joined: dict[str, np.ndarray | Nf4] = {
    name: value for name, value in flat.items() if name.rpartition('/')[0] not in stems
  }
  for stem in stems:
    parts = {part: flat.get(f'{stem}/{part}') for part in PARTS}
    joined[stem] = _leaf(parts, shapes[stem], dtype)
  return joined


def _leaf(parts: Mapping[str, Any], shape: tuple[int, ...], dtype: str) -> Nf4:
  *_, out, inp = shape
  values: list[Any] = [parts.get(part) for part in PARTS]
  return Nf4(*values, shape=(out, inp), dtype=dtype)


def numpy_dtype(name: str) -> np.dtype:
  """Returns the dtype of a name that NF4 can be made by way of."""
  if name not in blocks.DTYPES:
    raise ConvertError(
      f'NF4 of dtype {name!r}, expected one of {", ".join(blocks.DTYPES)}'
    )
  return np.dtype(getattr(ml_dtypes, name, name))


def metadata(dtype: str) -> dict[str, str]:
  """Returns the metadata of one of our files.

  Args:
    dtype: by way of which its matrices were quantized; '' if none is.
  """
  return {_METADATA: dtype} if dtype else {}


def quantized_dtype(paths: Iterable[pathlib.Path]) -> str:
  """Returns the dtype by way of which our files were quantized; '' if they were not."""
  values = (safetensors_files.metadata(path).get(_METADATA) for path in paths)
  dtypes = {value for value in values if value}
  if len(dtypes) > 1 or not dtypes <= set(blocks.DTYPES):
    raise ConvertError(
      f'metadata {_METADATA!r}: expected one of {", ".join(blocks.DTYPES)}, found '
      f'{sorted(dtypes)}'
    )
  return next(iter(dtypes), '')


# ---------------------------------------------------------------- bitsandbytes


def check_quantization(config: Section) -> None:
  """Raises ConvertError if `quantization_config` is of another format than NF4.

  An absent type says nothing: each matrix carries its own.
  """
  config.choice('quant_method', ('bitsandbytes',))
  for field in ('load_in_8bit', '_load_in_8bit'):
    config.choice(field, (False, None))
  if config.values.get('load_in_4bit'):
    config.choice('bnb_4bit_quant_type', ('nf4',))
  config_fields.reject_unknown(config, _QUANTIZATION)


def join_bitsandbytes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Returns the tensors with one `Nf4Tensor` in place of those of a matrix in NF4.

  Raises:
    ConvertError: names matrices whose tensors are missing or of another size.
  """
  out, problems = dict(tensors), _other_formats(tensors)
  for name in tensors:
    if not name.endswith(_STATE):
      continue
    stem = name.removesuffix(_STATE)
    try:
      info = json.loads(tensors[name].read().tobytes())
      rows, columns = (int(size) for size in info['shape'])
      dtype = numpy_dtype(info['dtype'])
      double = 'nested_offset' in info
      blocks_of = info['blocksize'], info.get('nested_blocksize', _NESTED)
    except (ConvertError, ValueError, KeyError, TypeError, RecursionError) as error:
      problems.append(f'{name} is damaged ({error!r})')
      continue
    if blocks_of != (nf4.BLOCK, _NESTED):
      problems.append(
        f'{stem} has blocks of {blocks_of[0]} (of {blocks_of[1]} scales), expected '
        f'{nf4.BLOCK} (of {_NESTED}); quantize it again'
      )
      continue
    sizes = _part_sizes(rows * columns, double)
    for part, size in sizes.items():
      tensor = tensors.get(stem + part)
      if tensor is None:
        problems.append(f'missing {stem}{part}')
        continue
      # codes are bytes, whatever the dtype in which they are stored
      unit = 1 if part else tensor.dtype.itemsize
      if math.prod(tensor.shape) * unit != size:
        problems.append(
          f'{stem}{part} has {math.prod(tensor.shape) * unit} '
          f'{"elements" if part else "bytes"}, [{rows}, {columns}] in NF4 needs {size}'
        )
    names = [stem, *(stem + part for part in sizes if part), name]
    parts = {
      n: part for n in names if isinstance(part := out.pop(n, None), StoredTensor)
    }
    out[stem] = Nf4Tensor((rows, columns), dtype, double, parts)
  if problems:
    raise ConvertError(
      f'expected weights in 16 or 32 bits, or in NF4 of bitsandbytes: '
      f'{join_names(problems)}'
    )
  return out


def _other_formats(tensors: Mapping[str, Tensor]) -> list[str]:
  """Returns what is quantized in other ways, in words."""
  problems = []
  for name in tensors:
    stem, _, kind = name.rpartition('.quant_state.bitsandbytes__')
    if stem and kind != 'nf4':
      problems.append(f'{stem} is in {kind.upper()} of bitsandbytes')
    elif name.endswith('.SCB'):
      problems.append(f'{name.removesuffix(".SCB")}.weight is in int8 of bitsandbytes')
    elif name.endswith(('.qweight', '.weight_packed')):
      problems.append(f'{name} is in a format of GPTQ, AWQ or compressed-tensors')
  return problems


def _part_sizes(count: int, double: bool) -> dict[str, int]:
  """Returns the elements of bitsandbytes' tensors of a matrix, by their suffixes."""
  absmax = -(-count // nf4.BLOCK)
  sizes = {'': -(-count // 2), '.absmax': absmax, '.quant_map': 16}
  if double:
    sizes |= {'.nested_absmax': -(-absmax // _NESTED), '.nested_quant_map': 256}
  return sizes
