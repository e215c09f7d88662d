"""Keeps the visual features of each video on disk, computed once.

The tower, and after SFT the projector too, is frozen, so its output is a pure function
of (video, weights, frame sampling). A store holds one array a video, in a file named by
the hash of everything it depends on: a stale feature cannot be read by mistake, and any
run, of any size, may share the folder.

A file is an array in NumPy's format and a checksum. It is not trusted: one that is not
what was written raises `EntryError`, and its features are computed again.
"""

import hashlib
import io
import json
import math
import os
import pathlib
import uuid
import zlib

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.core import hosts

# Of the preprocessing; a change makes new features. 2: frames as players show them,
# with a checksum.
VERSION = 2
CHECKSUM_BYTES = 4

Shape = tuple[int, ...]


class EntryError(Exception):
  """A stored array that is missing or not what was written; names the file."""


class NotFiniteError(Exception):
  """Features that are NaN or infinite, or too large for how they are stored."""


class FeatureStore:
  """Arrays of one kind: `[F, P, C]` patch features, or `[N, D]` visual tokens.

  Args:
    folder: where features of every kind live.
    kind: everything but the video that a feature depends on (weights, frames, size).
    dtype: of the stored arrays; bfloat16 is stored as its bits.
  """

  def __init__(self, folder: str | pathlib.Path, kind: dict, dtype: str):
    text = json.dumps({**kind, 'dtype': dtype, 'version': VERSION}, sort_keys=True)
    self.folder = pathlib.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
    self.dtype = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    self.folder.mkdir(parents=True, exist_ok=True)
    kind_file = self.folder / 'kind.json'
    if hosts.is_first() and not kind_file.exists():
      kind_file.write_text(text)

  def path(self, key: str) -> pathlib.Path:
    """Returns the file of a key."""
    return self.folder / key[:2] / f'{key}.npy'

  def nbytes(self, shape: Shape) -> int:
    """Returns the size of the file of an array."""
    payload = math.prod(shape) * self.dtype.itemsize
    return len(self._head(shape)) + payload + CHECKSUM_BYTES

  def has(self, key: str, shape: Shape) -> bool:
    """Returns whether there is an array of this shape, by size and head of its file.

    Raises:
      EntryError: there is a file with something else. What `has` does not read, `read`
        checks.
    """
    path, head = self.path(key), self._head(shape)
    try:
      with path.open('rb') as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(head))
    except FileNotFoundError:
      return False
    except OSError as error:
      raise EntryError(f'{path}: {error.strerror}') from None
    self._check_head(path, start, size, shape)
    return True

  def read(self, key: str, shape: Shape) -> np.ndarray:
    """Returns the array of a key.

    Raises:
      EntryError: it is missing, of another shape or dtype, or its checksum is wrong.
    """
    path, head = self.path(key), self._head(shape)
    try:
      data = path.read_bytes()
    except OSError as error:
      raise EntryError(f'{path}: {error.strerror}') from None
    self._check_head(path, data[: len(head)], len(data), shape)
    contents = memoryview(data)[:-CHECKSUM_BYTES]
    if zlib.crc32(contents) != int.from_bytes(data[-CHECKSUM_BYTES:], 'big'):
      raise EntryError(f'{path}: its checksum is wrong')
    return np.frombuffer(contents[len(head) :], self.dtype).reshape(shape)

  def write(self, key: str, value: np.ndarray) -> None:
    """Writes an array so that a reader never finds half of it.

    Raises:
      NotFiniteError: some of its values are no numbers; nothing is written.
    """
    path = self.path(key)
    with np.errstate(over='ignore'):  # which is looked for below
      value = np.ascontiguousarray(value.astype(self.dtype))
    if wrong := _count_infinite(value):
      raise NotFiniteError(
        f'{wrong} of {value.size} features are NaN or infinite in {self.dtype.name}; '
        'weights of the tower or the projector are damaged, or too large for '
        'config.model.dtype'
      )
    path.parent.mkdir(exist_ok=True)
    head, payload = self._head(value.shape), value.view(np.uint8).data
    part = path.with_name(f'{uuid.uuid4().hex}.part')
    with part.open('wb') as file:
      file.write(head)
      file.write(payload)
      checksum = zlib.crc32(payload, zlib.crc32(head))
      file.write(checksum.to_bytes(CHECKSUM_BYTES, 'big'))
    os.replace(part, path)

  def _head(self, shape: Shape) -> bytes:
    """Returns the bytes before the values: NumPy's magic number, dtype and shape."""
    bits = self.dtype == ml_dtypes.bfloat16
    dtype = np.dtype(np.uint16) if bits else self.dtype
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      head, {'descr': dtype.str, 'fortran_order': False, 'shape': tuple(shape)}
    )
    return head.getvalue()

  def _check_head(
    self, path: pathlib.Path, head: bytes, size: int, shape: Shape
  ) -> None:
    """Raises EntryError unless a file has this head and the size that belongs to it."""
    expected = f'{self.dtype.name}{list(shape)}'
    if head != self._head(shape):
      contents = 'no such array' if size else 'nothing'
      raise EntryError(f'{path}: expected {expected}, found {contents}')
    if size != self.nbytes(shape):
      raise EntryError(
        f'{path}: expected {self.nbytes(shape)} bytes for {expected}, found {size}'
      )


def _count_infinite(value: np.ndarray) -> int:
  """Returns how many numbers are NaN or infinite: those with all exponent bits.

  It takes a fifth of the time of `isfinite`, which shows in patches of thousands of
  videos.
  """
  bits = np.dtype(f'u{value.dtype.itemsize}')
  exponent = np.asarray(np.inf, value.dtype).view(bits)
  return int(np.count_nonzero(value.view(bits) & exponent == exponent))
