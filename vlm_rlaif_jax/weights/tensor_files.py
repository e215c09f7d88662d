"""Foreign files as tensors by name, unread: safetensors, and PyTorch's .bin and .pt.

    read_file(path) -> {name: Stored(shape, dtype, path, offset)}

Only headers are read here; `Stored.read` fetches one tensor. A pickle is never run: the
reader below knows the few names that a file of weights holds and refuses all others.
"""

import collections
import dataclasses
import json
import math
import pathlib
import pickle
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.settings.build import UserError

SAFETENSORS = {
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
_STORAGES = {
  'DoubleStorage': 'F64',
  'FloatStorage': 'F32',
  'HalfStorage': 'F16',
  'BFloat16Storage': 'BF16',
  'LongStorage': 'I64',
  'IntStorage': 'I32',
  'ShortStorage': 'I16',
  'CharStorage': 'I8',
  'ByteStorage': 'U8',
  'BoolStorage': 'BOOL',
}
_MOST_SIZE = 1 << 63  # of an axis or an offset
_MOST_PICKLE = 1 << 28  # bytes; the names and shapes of a shard take a few kilobytes


class ConvertError(UserError):
  """A checkpoint that is damaged, incomplete, or of another kind or size."""


class Tensor(Protocol):
  """Something that can be read as an array, and where it lies on disk."""

  @property
  def shape(self) -> tuple[int, ...]: ...
  @property
  def dtype(self) -> np.dtype: ...
  @property
  def place(self) -> tuple[str, int]: ...
  def read(self) -> np.ndarray: ...


Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor on disk.

  Attributes:
    offset: of its first element in the file, bytes.
    strides: in elements, where the tensor is not contiguous.
    crc: of its bytes, where the file states one.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  path: pathlib.Path
  offset: int
  strides: tuple[int, ...] | None = None
  crc: int | None = None

  @property
  def place(self) -> tuple[str, int]:
    return str(self.path), self.offset

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    count = math.prod(self.shape)
    if self.strides is not None:
      count = 1 + sum(
        (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
      )
    flat = np.empty(count, self.dtype)
    with self.path.open('rb') as file:
      file.seek(self.offset)
      got = file.readinto(flat.view(np.uint8).data)
    if got != flat.nbytes:
      raise ConvertError(f'{self.path}: ends within a tensor; the file is truncated')
    if self.crc is not None and zlib.crc32(flat.view(np.uint8).data) != self.crc:
      raise ConvertError(f'{self.path}: checksum of a tensor is wrong; it is corrupt')
    if self.strides is not None:
      steps = [s * self.dtype.itemsize for s in self.strides]
      return np.ascontiguousarray(
        np.lib.stride_tricks.as_strided(flat, self.shape, steps)
      )
    return flat.reshape(self.shape)

  def layer(self, index: int) -> 'Stored':
    """One entry of the leading axis."""
    size = self.nbytes // self.shape[0]
    return dataclasses.replace(
      self, shape=self.shape[1:], offset=self.offset + index * size
    )


@dataclasses.dataclass(frozen=True)
class Held:
  """A tensor in memory."""

  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  @property
  def place(self) -> tuple[str, int]:
    return '', 0

  def read(self) -> np.ndarray:
    return self.array


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ConvertError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
    raise ConvertError(f'{path}: not JSON ({error})') from None
  except OSError as error:
    raise ConvertError(f'{path}: cannot be read ({error.strerror})') from None
  if not isinstance(value, dict):
    raise ConvertError(f'{path}: holds a {type(value).__name__}, a dict was expected')
  return value


def is_floating(dtype: np.dtype) -> bool:
  return dtype.kind == 'f' or dtype.name == 'bfloat16'


def floats(where, name: str, array: np.ndarray) -> np.ndarray:
  """The array itself; refuses one that is not of finite floating numbers.

  Args:
    where: names its file in the error.
  """
  if not is_floating(array.dtype):
    raise ConvertError(
      f'{where}: {name} has dtype {array.dtype}, expected a floating one'
    )
  if not np.isfinite(array).all():
    raise ConvertError(f'{where}: {name} has values that are not finite')
  return array


def read_file(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one file of weights, whatever its kind."""
  try:
    with path.open('rb') as file:
      start = file.read(8)
    if start[:4] == b'PK\x03\x04':
      return _read_torch(path)
    if path.suffix == '.safetensors':
      return _read_safetensors(path)
  except OSError as error:
    raise ConvertError(f'{path}: cannot be read ({error.strerror})') from None
  raise ConvertError(
    f'{path}: neither safetensors nor a PyTorch zip file (files of PyTorch before 1.6 '
    'are not read; save them anew)'
  )


def read_shards(folder: pathlib.Path, stem: str) -> dict[str, Stored] | None:
  """The tensors of `<stem>.safetensors` or `.bin`, in one file or with an index.

  Returns:
    None where the folder holds neither.
  """
  for suffix, base in (('safetensors', stem), ('bin', f'pytorch_{stem}')):
    index = folder / f'{base}.{suffix}.index.json'
    if index.is_file():
      return _read_index(index)
    if (folder / f'{base}.{suffix}').is_file():
      return read_file(folder / f'{base}.{suffix}')
  return None


def _read_index(index: pathlib.Path) -> dict[str, Stored]:
  where = read_json(index).get('weight_map')
  if not (where and isinstance(where, dict)) or not all(
    isinstance(file, str) and pathlib.PurePath(file).name == file
    for file in where.values()
  ):
    raise ConvertError(f'{index}: has no weight_map of tensor and file names')
  shards = sorted(set(where.values()))
  absent = [file for file in shards if not (index.parent / file).is_file()]
  if absent:
    raise ConvertError(f'{index}: names shards that are missing: {listed(absent)}')
  tensors: dict[str, Stored] = {}
  for file in shards:
    found = read_file(index.parent / file)
    said = {name for name, shard in where.items() if shard == file}
    if lost := sorted(said - found.keys()):
      raise ConvertError(
        f'{index.parent / file}: lacks what {index.name} says: {listed(lost)}'
      )
    if twice := sorted(tensors.keys() & found.keys()):
      raise ConvertError(f'{index.parent / file}: repeats {listed(twice)}')
    tensors |= found
  return tensors


def listed(names, most: int = 6) -> str:
  """'a, b, c and 4 more'."""
  names = list(names)
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


# ---------------------------------------------------------------- safetensors


def _header(path: pathlib.Path) -> tuple[dict, int, int]:
  """The header of a safetensors file, where its tensors begin, how long it is."""
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
      f'{path}: its header is corrupt (__metadata__ is no dict of texts)'
    )
  return header, 8 + length, size


def metadata(path: pathlib.Path) -> dict[str, str]:
  """What a safetensors file says beside its tensors."""
  return _header(path)[0].get('__metadata__', {})


def _read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
  """As the format demands: tensors one after the other, up to the end of the file."""
  header, begin, size = _header(path)
  header.pop('__metadata__', None)
  tensors = {name: _entry(path, begin, name, entry) for name, entry in header.items()}
  reached, last = begin, 'the header'
  for name, made in sorted(
    tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)
  ):
    if made.offset != reached:
      raise ConvertError(
        f'{path}: {name} begins at byte {made.offset}, {last} ends at byte {reached}; '
        'the file is corrupt'
      )
    reached, last = made.offset + made.nbytes, name
  if reached > size:
    raise ConvertError(
      f'{path}: ends at byte {size}, {last} reaches byte {reached}; the file is '
      'truncated'
    )
  if reached < size:
    raise ConvertError(
      f'{path}: has {size - reached} bytes after {last}; the file is corrupt'
    )
  return tensors


def _entry(path: pathlib.Path, begin: int, name: str, entry) -> Stored:
  """One tensor of a header; its span must be what its shape needs."""
  match entry:
    case {
      'dtype': str(code),
      'shape': [*shape],
      'data_offsets': [first, stop],
    } if all(type(n) is int and 0 <= n < _MOST_SIZE for n in (*shape, first, stop)):
      pass
    case _:
      raise ConvertError(
        f'{path}: its header is corrupt ({name} is {reprlib.repr(entry)})'
      )
  if code not in SAFETENSORS:
    raise ConvertError(f'{path}: {name} has dtype {code}, not known')
  made = Stored(tuple(shape), SAFETENSORS[code], path, begin + first)
  if stop - first != made.nbytes:
    raise ConvertError(
      f'{path}: {name} has {stop - first} bytes, its shape needs {made.nbytes}; '
      'the file is corrupt'
    )
  return made


# ---------------------------------------------------------------- PyTorch


@dataclasses.dataclass(frozen=True)
class _Storage:
  dtype: np.dtype
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class _Strided:
  """What `_rebuild_tensor_v2` is asked to build."""

  storage: _Storage
  first: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage, first, shape, strides, *_) -> _Strided:
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError('a tensor without a storage')
  if not all(type(n) is int for n in (first, *shape, *strides)):
    raise pickle.UnpicklingError('a tensor whose shape is not of integers')
  return _Strided(storage, first, tuple(shape), tuple(strides))


def _rebuild_parameter(data, *_):
  return data


class _Names(pickle.Unpickler):
  """Reads names, shapes and dtypes; refuses everything that weights do not need."""

  allowed = {  # noqa: RUF012
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  }

  def find_class(self, module, name):
    if (module, name) in self.allowed:
      return self.allowed[module, name]
    if module == 'torch' and name in _STORAGES:
      return _STORAGES[name]
    raise ConvertError(
      f'asks for {module}.{name}, which weights do not need; it was not run'
    )

  def persistent_load(self, pid):
    kind, code, key, _, count = pid
    if kind != 'storage' or code not in SAFETENSORS:
      raise pickle.UnpicklingError(f'unknown storage {kind!r}')
    return _Storage(SAFETENSORS[code], str(key), int(count))


def _read_torch(path: pathlib.Path) -> dict[str, Stored]:
  try:
    with zipfile.ZipFile(path) as archive, path.open('rb') as raw:
      members = {info.filename: info for info in archive.infolist()}
      (index,) = [name for name in members if name.endswith('/data.pkl')]
      root = index.removesuffix('data.pkl')
      order = members.get(f'{root}byteorder')
      if order is not None and archive.read(order).strip() != b'little':
        raise ConvertError(f'{path}: is big-endian; only little-endian files are read')
      if members[index].file_size > _MOST_PICKLE:
        raise ConvertError(f'{path}: its index has {members[index].file_size} bytes')
      with archive.open(index) as file:
        found = _Names(file).load()
      if not isinstance(found, dict):
        raise ConvertError(f'{path}: holds a {type(found).__name__}, not named tensors')
      return {
        str(name): _stored(path, raw, members, root, str(name), value)
        for name, value in found.items()
      }
  except ConvertError as error:
    text = str(error)
    raise ConvertError(text if str(path) in text else f'{path}: {text}') from None
  except zipfile.BadZipFile as error:
    raise ConvertError(f'{path}: truncated or corrupt ({error})') from None
  except (OSError, EOFError) as error:
    raise ConvertError(f'{path}: cannot be read ({error})') from None
  except (
    Exception
  ) as error:  # a pickle that was tampered with fails in any way it likes
    raise ConvertError(f'{path}: not a file of named tensors ({error!r})') from None


def _stored(path, raw, members, root: str, name: str, value) -> Stored:
  """Where a tensor's bytes lie in the archive, which PyTorch does not compress."""
  if not isinstance(value, _Strided):
    raise ConvertError(f'{path}: {name} is a {type(value).__name__}, not a tensor')
  info = members.get(f'{root}data/{value.storage.key}')
  if info is None:
    raise ConvertError(f'{path}: lacks the bytes of {name}')
  if info.compress_type != zipfile.ZIP_STORED:
    raise ConvertError(f'{path}: {name} is compressed; PyTorch does not do that')
  raw.seek(info.header_offset + 26)
  names, extra = struct.unpack('<HH', raw.read(4))
  start = info.header_offset + 30 + names + extra
  kind = value.storage.dtype
  negative = value.first < 0 or any(s < 0 for s in (*value.strides, *value.shape))
  reach = value.first + sum(
    (n - 1) * s for n, s in zip(value.shape, value.strides, strict=True)
  )
  count = math.prod(value.shape)
  if count and (negative or (reach + 1) * kind.itemsize > info.file_size):
    raise ConvertError(f'{path}: {name} reaches beyond its bytes; the file is corrupt')
  dense, step = [], 1
  for size in reversed(value.shape):
    dense.insert(0, step)
    step *= size
  loose = any(
    size > 1 and has != want
    for size, has, want in zip(value.shape, value.strides, dense, strict=True)
  )
  whole = not loose and value.first == 0 and count * kind.itemsize == info.file_size
  return Stored(
    value.shape,
    kind,
    path,
    start + value.first * kind.itemsize,
    value.strides if loose else None,
    info.CRC if whole else None,
  )
