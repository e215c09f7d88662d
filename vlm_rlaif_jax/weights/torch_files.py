"""PyTorch's zip files (.bin, .pt) of named tensors, read without running their pickles.

The reader knows the few names that a file of weights needs and refuses all others.
"""

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from vlm_rlaif_jax.weights import safetensors_files
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.tensors import StoredTensor

STORAGES = {  # PyTorch's class -> code of the dtype in safetensors
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
_MAX_PICKLE = 1 << 28  # bytes; the names and shapes of a shard take a few kilobytes


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A file of the archive with the elements of one or more tensors."""

  dtype: np.dtype
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class _View:
  """The arguments of `torch._utils._rebuild_tensor_v2`: a tensor within a storage."""

  storage: _Storage
  first: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(
  storage: Any, first: Any, shape: Any, strides: Any, *_: Any
) -> _View:
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError('a tensor without a storage')
  if not all(type(n) is int for n in (first, *shape, *strides)):
    raise pickle.UnpicklingError('a tensor whose shape is not of integers')
  return _View(storage, first, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
  return data


class _Unpickler(pickle.Unpickler):
  """Reads names, shapes and dtypes; refuses everything that weights do not need."""

  allowed = {  # noqa: RUF012
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  }

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self.allowed:
      return self.allowed[module, name]
    if module == 'torch' and name in STORAGES:
      return STORAGES[name]
    raise ConvertError(
      f'asks for {module}.{name}, which weights do not need; it was not run'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    kind, code, key, _, count = pid
    if kind != 'storage' or code not in safetensors_files.DTYPES:
      raise pickle.UnpicklingError(f'unknown storage {kind!r}')
    return _Storage(safetensors_files.DTYPES[code], str(key), int(count))


def read(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of a file, unread.

  Raises:
    ConvertError: the file is damaged, or its pickle asks for anything but tensors.
  """
  try:
    return _read(path)
  except ConvertError as error:
    text = str(error)
    raise ConvertError(text if str(path) in text else f'{path}: {text}') from None
  except zipfile.BadZipFile as error:
    raise ConvertError(f'{path}: truncated or corrupt ({error})') from None
  except (OSError, EOFError) as error:
    raise ConvertError(f'{path}: cannot be read ({error})') from None
  # a pickle that was tampered with fails in any way
  except Exception as error:
    raise ConvertError(f'{path}: not a file of named tensors ({error!r})') from None


def _read(path: pathlib.Path) -> dict[str, StoredTensor]:
  with zipfile.ZipFile(path) as archive, path.open('rb') as raw:
    members = {info.filename: info for info in archive.infolist()}
    (index,) = [name for name in members if name.endswith('/data.pkl')]
    root = index.removesuffix('data.pkl')
    order = members.get(f'{root}byteorder')
    if order is not None and archive.read(order).strip() != b'little':
      raise ConvertError(f'{path}: is big-endian; only little-endian files are read')
    nbytes = members[index].file_size
    if nbytes > _MAX_PICKLE:
      raise ConvertError(
        f'{path}: its index has {nbytes} bytes, expected at most {_MAX_PICKLE}'
      )
    with archive.open(index) as file:
      views = _Unpickler(file).load()
    if not isinstance(views, dict):
      raise ConvertError(
        f'{path}: contains a {type(views).__name__}, expected named tensors'
      )
    return {
      str(name): _locate(path, raw, members, root, str(name), view)
      for name, view in views.items()
    }


def _locate(
  path: pathlib.Path,
  raw: BinaryIO,
  members: Mapping[str, zipfile.ZipInfo],
  root: str,
  name: str,
  view: Any,
) -> StoredTensor:
  """Finds a tensor's bytes in the archive, which PyTorch does not compress."""
  if not isinstance(view, _View):
    raise ConvertError(f'{path}: {name} is a {type(view).__name__}, expected a tensor')
  info = members.get(f'{root}data/{view.storage.key}')
  if info is None:
    raise ConvertError(f'{path}: the bytes of {name} are missing')
  if info.compress_type != zipfile.ZIP_STORED:
    raise ConvertError(
      f'{path}: {name} is compressed, which PyTorch does not do; save it again'
    )
  raw.seek(info.header_offset + 26)
  name_length, extra_length = struct.unpack('<HH', raw.read(4))
  start = info.header_offset + 30 + name_length + extra_length
  dtype, shape, strides = view.storage.dtype, view.shape, view.strides
  negative = view.first < 0 or any(s < 0 for s in (*strides, *shape))
  last = view.first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  count = math.prod(shape)
  if count and (negative or (last + 1) * dtype.itemsize > info.file_size):
    raise ConvertError(f'{path}: {name} reaches beyond its bytes; the file is corrupt')
  is_strided = any(
    size > 1 and stride != dense
    for size, stride, dense in zip(shape, strides, dense_strides(shape), strict=True)
  )
  fills_member = (
    not is_strided and view.first == 0 and count * dtype.itemsize == info.file_size
  )
  return StoredTensor(
    shape,
    dtype,
    path,
    start + view.first * dtype.itemsize,
    strides if is_strided else None,
    info.CRC if fills_member else None,
  )


def dense_strides(shape: tuple[int, ...]) -> list[int]:
  """Returns the strides of a contiguous array, in elements."""
  strides, step = [], 1
  for size in reversed(shape):
    strides.insert(0, step)
    step *= size
  return strides


# ---------------------------------------------------------------- writing


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a small state dict that `torch.load(weights_only=True)` reads."""
  index = b'\x80\x02}(' + b''.join(_pickled(tensors)) + b'u.'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    root = path.stem or 'archive'
    archive.writestr(f'{root}/data.pkl', index)
    archive.writestr(f'{root}/byteorder', b'little')
    for key, array in enumerate(tensors.values()):
      archive.writestr(f'{root}/data/{key}', np.ascontiguousarray(array).tobytes())
    archive.writestr(f'{root}/version', b'3\n')


def _pickled(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
  """Yields the opcodes of name and `_rebuild_tensor_v2` call of every tensor."""
  storages = {code: storage for storage, code in STORAGES.items()}
  for key, (name, array) in enumerate(tensors.items()):
    storage = storages[safetensors_files.CODES[array.dtype]]
    yield _text(name)
    yield b'ctorch._utils\n_rebuild_tensor_v2\n(('
    yield _text('storage')
    yield f'ctorch\n{storage}\n'.encode()
    yield _text(str(key)) + _text('cpu') + _number(array.size)
    yield b'tQ' + _number(0) + _tuple(array.shape) + _tuple(dense_strides(array.shape))
    yield b'\x89ccollections\nOrderedDict\n)RtR'  # False, no hooks


def _text(text: str) -> bytes:
  data = text.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _number(value: int) -> bytes:
  return pickle.BININT + struct.pack('<i', value)


def _tuple(values: Iterable[int]) -> bytes:
  return pickle.MARK + b''.join(_number(v) for v in values) + pickle.TUPLE
