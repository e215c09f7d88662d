"""Files that are written tensor by tensor, and folders that appear whole or not at all.

A safetensors file's header is known before its contents, so the file is made at its
full size first and each tensor goes straight to its place: no more than one tensor is
in memory, in whatever order they come.
"""

import contextlib
import json
import math
import os
import pathlib
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from vlm_rlaif_jax.weights.tensor_files import (
  _STORAGES,
  SAFETENSORS,
  ConvertError,
  listed,
)

SHARD = 5 * 10**9  # bytes of a shard, as is usual on the hub
_CODES = {dtype: code for code, dtype in SAFETENSORS.items()}
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@contextlib.contextmanager
def whole_folder(folder: pathlib.Path, *, replace: bool = False, need: int = 0):
  """Yields `<folder>.part`, which becomes the folder when all went well.

  Args:
    replace: an existing folder may be replaced; it stays until the new one is whole.
    need: bytes that will be written; a disk without room is refused at once.
  """
  if folder.exists() and not replace:
    raise ConvertError(f'{folder}: exists already; give another, or --overwrite')
  part, old = beside(folder)
  if old.exists():
    raise ConvertError(
      f'{old}: what {folder} held before a conversion that was killed; move it away'
    )
  shutil.rmtree(part, ignore_errors=True)
  try:
    part.mkdir(parents=True)
    free = shutil.disk_usage(part).free
    if need > free:
      raise ConvertError(
        f'{folder}: {need / 1e9:.1f} GB to write, {free / 1e9:.1f} GB are free'
      )
    yield part
    _put(part, folder.resolve(), old)
  except OSError as error:
    raise ConvertError(f'{folder}: cannot be written ({error})') from None
  finally:
    shutil.rmtree(part, ignore_errors=True)


def beside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Where a folder is made, and where what it replaces waits for that."""
  place = folder.resolve()  # a link stays one: what it points to is replaced
  return place.with_name(f'{place.name}.part'), place.with_name(f'{place.name}.old')


def _put(part: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
  """Deletes what was there only after the new folder has its place."""
  try:
    if folder.exists():
      os.rename(folder, old)
    os.replace(part, folder)
  except BaseException:  # Ctrl-C between the two, too
    if old.exists() and not folder.exists():
      os.rename(old, folder)
    raise
  shutil.rmtree(old, ignore_errors=True)


class Writer:
  """One safetensors file, filled in any order; `close` refuses to leave a gap."""

  def __init__(self, path: pathlib.Path, shapes: Shapes, metadata=None):
    self.path, self.shapes = path, dict(shapes)
    header: dict = {'__metadata__': metadata} if metadata else {}
    self.offsets, self.left, position = {}, {}, 0
    for name, (shape, dtype) in self.shapes.items():
      nbytes = math.prod(shape) * dtype.itemsize
      header[name] = {
        'dtype': _CODES[dtype],
        'shape': list(shape),
        'data_offsets': [position, position + nbytes],
      }
      self.offsets[name], self.left[name] = position, nbytes
      position += nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    self.start = 8 + len(text)
    self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.truncate(self.file, self.start + position)
    os.pwrite(self.file, struct.pack('<Q', len(text)) + text, 0)

  def put(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    """Writes a tensor, or entry `index` of its leading axis."""
    shape, dtype = self.shapes[name]
    expected = shape if index is None else shape[1:]
    if array.shape != expected or array.dtype != dtype:
      raise ValueError(f'{name}: {array.shape} {array.dtype}, not {expected} {dtype}')
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    position = self.start + self.offsets[name] + (index or 0) * array.nbytes
    done = 0
    while done < len(data):  # one call writes at most 2 GiB
      done += os.pwrite(self.file, data[done : done + (1 << 30)], position + done)
    self.left[name] -= array.nbytes

  def close(self) -> None:
    unfinished = [name for name, left in self.left.items() if left]
    os.fsync(self.file)
    os.close(self.file)
    if unfinished:
      raise RuntimeError(f'{self.path}: never written: {listed(unfinished)}')


class Shards:
  """Several files with an index, as `transformers` lays them out."""

  def __init__(self, folder: pathlib.Path, shapes: Shapes, limit: int = SHARD):
    groups: list[dict] = [{}]
    size = total = 0
    for name, (shape, dtype) in shapes.items():
      nbytes = math.prod(shape) * dtype.itemsize
      if groups[-1] and size + nbytes > limit:
        groups.append({})
        size = 0
      groups[-1][name] = (shape, dtype)
      size, total = size + nbytes, total + nbytes
    names = ['model.safetensors']
    if len(groups) > 1:
      count = len(groups)
      names = [f'model-{i + 1:05}-of-{count:05}.safetensors' for i in range(count)]
      where = {t: f for f, group in zip(names, groups, strict=True) for t in group}
      index = {'metadata': {'total_size': total}, 'weight_map': where}
      (folder / 'model.safetensors.index.json').write_text(
        json.dumps(index, indent=2) + '\n'
      )
    self.writers = [
      Writer(folder / name, group, {'format': 'pt'})
      for name, group in zip(names, groups, strict=True)
    ]

  def put(self, name: str, array: np.ndarray) -> None:
    for writer in self.writers:
      if name in writer.shapes:
        writer.put(name, array)

  def close(self) -> None:
    for writer in self.writers:
      writer.close()


class Memory:
  """The same as `Writer`, into arrays."""

  def __init__(self, shapes: Shapes):
    self.arrays = {
      name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()
    }

  def put(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    self.arrays[name][... if index is None else index] = array

  def close(self) -> None:
    pass


# ---------------------------------------------------------------- PyTorch


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """A small state dict that `torch.load(weights_only=True)` reads."""
  codes = {code: storage for storage, code in _STORAGES.items()}

  def of_tensors() -> Iterator[bytes]:
    for key, (name, array) in enumerate(tensors.items()):
      strides, step = [], 1
      for size in reversed(array.shape):
        strides.insert(0, step)
        step *= size
      yield _text(name)
      yield b'ctorch._utils\n_rebuild_tensor_v2\n(('
      yield _text('storage')
      yield f'ctorch\n{codes[_CODES[array.dtype]]}\n'.encode()
      yield _text(str(key)) + _text('cpu') + _number(array.size)
      yield b'tQ' + _number(0) + _tuple(array.shape) + _tuple(strides)
      yield b'\x89ccollections\nOrderedDict\n)RtR'  # False, no hooks

  index = b'\x80\x02}(' + b''.join(of_tensors()) + b'u.'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    root = path.stem or 'archive'
    archive.writestr(f'{root}/data.pkl', index)
    archive.writestr(f'{root}/byteorder', b'little')
    for key, array in enumerate(tensors.values()):
      archive.writestr(f'{root}/data/{key}', np.ascontiguousarray(array).tobytes())
    archive.writestr(f'{root}/version', b'3\n')


def _text(text: str) -> bytes:
  data = text.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _number(value: int) -> bytes:
  return pickle.BININT + struct.pack('<i', value)


def _tuple(values) -> bytes:
  return pickle.MARK + b''.join(_number(v) for v in values) + pickle.TUPLE


def copy_files(source: pathlib.Path, target: pathlib.Path, names) -> list[str]:
  """Copies the files that are there; returns their names."""
  found = [name for name in names if (source / name).is_file()]
  for name in found:
    shutil.copyfile(source / name, target / name)
  return found
