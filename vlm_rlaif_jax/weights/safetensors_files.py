"""Files of safetensors: read by headers, written tensor by tensor in any order.

A header is known before the contents, so a file is made at its full size first and each
tensor goes straight to its place: no more than one tensor is in memory.
"""

import json
import math
import os
import pathlib
import reprlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.tensors import StoredTensor

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
_MAX_SIZE = 1 << 63  # of an axis or an offset


# ---------------------------------------------------------------- reading


def read(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of a file, unread.

  The format demands that tensors follow one another without gaps up to the end.
  """
  header, begin, size = _header(path)
  header.pop('__metadata__', None)
  tensors = {name: _entry(path, begin, name, entry) for name, entry in header.items()}
  end, last = begin, 'the header'
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)
  ):
    if tensor.offset != end:
      raise ConvertError(
        f'{path}: {name} begins at byte {tensor.offset}, {last} ends at byte {end}; '
        'the file is corrupt'
      )
    end, last = tensor.offset + tensor.nbytes, name
  if end > size:
    raise ConvertError(
      f'{path}: ends at byte {size}, {last} needs it to reach byte {end}; the file is '
      'truncated'
    )
  if end < size:
    raise ConvertError(
      f'{path}: has {size - end} bytes after {last}; the file is corrupt'
    )
  return tensors


def metadata(path: pathlib.Path) -> dict[str, str]:
  """Returns the metadata of a file: texts by name."""
  return _header(path)[0].get('__metadata__', {})


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int, int]:
  """Returns the header, the offset of the first tensor, and the size of the file."""
  size = path.stat().st_size
  with path.open('rb') as file:
    start = file.read(8)
    length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
    if 8 + length > size:
      raise ConvertError(f'{path}: ends within its header; the file is truncated')
    text = file.read(length)
  try:
    header = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ConvertError(f'{path}: its header is corrupt ({error})') from None
  if not isinstance(header, dict):
    raise ConvertError(
      f'{path}: its header is corrupt (a {type(header).__name__}, expected a dict)'
    )
  notes = header.get('__metadata__', {})
  if not isinstance(notes, dict) or not all(isinstance(x, str) for x in notes.values()):
    raise ConvertError(
      f'{path}: its header is corrupt (__metadata__ is not a dict of texts)'
    )
  return header, 8 + length, size


def _entry(path: pathlib.Path, begin: int, name: str, entry: Any) -> StoredTensor:
  """Returns one tensor of a header; its span must be what its shape needs."""
  match entry:
    case {
      'dtype': str(code),
      'shape': [*shape],
      'data_offsets': [first, stop],
    } if all(type(n) is int and 0 <= n < _MAX_SIZE for n in (*shape, first, stop)):
      pass
    case _:
      raise ConvertError(
        f'{path}: its header is corrupt ({name} is {reprlib.repr(entry)})'
      )
  if code not in DTYPES:
    raise ConvertError(
      f'{path}: {name} has dtype {code}, expected one of {", ".join(DTYPES)}'
    )
  tensor = StoredTensor(tuple(shape), DTYPES[code], path, begin + first)
  if stop - first != tensor.nbytes:
    raise ConvertError(
      f'{path}: {name} has {stop - first} bytes, its shape needs {tensor.nbytes}; '
      'the file is corrupt'
    )
  return tensor


# ---------------------------------------------------------------- writing


class Writer:
  """One file, filled in any order; `close` raises if a tensor is incomplete."""

  def __init__(
    self, path: pathlib.Path, shapes: Shapes, metadata: dict[str, str] | None = None
  ):
    self.path, self.shapes = path, dict(shapes)
    header: dict[str, Any] = {'__metadata__': metadata} if metadata else {}
    self._offsets: dict[str, int] = {}
    self._unwritten: dict[str, int] = {}  # bytes
    position = 0
    for name, (shape, dtype) in self.shapes.items():
      nbytes = math.prod(shape) * dtype.itemsize
      header[name] = {
        'dtype': CODES[dtype],
        'shape': list(shape),
        'data_offsets': [position, position + nbytes],
      }
      self._offsets[name], self._unwritten[name] = position, nbytes
      position += nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    self._start = 8 + len(text)
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.truncate(self._file, self._start + position)
    os.pwrite(self._file, struct.pack('<Q', len(text)) + text, 0)

  def put(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    """Writes a tensor, or entry `index` of its leading axis."""
    shape, dtype = self.shapes[name]
    expected = shape if index is None else shape[1:]
    if array.shape != expected or array.dtype != dtype:
      raise ValueError(f'{name}: {array.shape} {array.dtype}, not {expected} {dtype}')
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    position = self._start + self._offsets[name] + (index or 0) * array.nbytes
    written = 0
    while written < len(data):  # one call writes at most 2 GiB
      piece = data[written : written + (1 << 30)]
      written += os.pwrite(self._file, piece, position + written)
    self._unwritten[name] -= array.nbytes

  def close(self) -> None:
    unfinished = [name for name, nbytes in self._unwritten.items() if nbytes]
    os.fsync(self._file)
    os.close(self._file)
    if unfinished:
      raise RuntimeError(f'{self.path}: never written: {join_names(unfinished)}')
