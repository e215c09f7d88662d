"""Tensors on disk or in memory behind one interface: shapes first, values on `read`."""

import dataclasses
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from vlm_rlaif_jax.weights.errors import ConvertError


class Tensor(Protocol):
  """Something that can be read as an array.

  Attributes:
    location: file and offset in bytes, by which readers sort; ('', 0) in memory.
  """

  @property
  def shape(self) -> tuple[int, ...]: ...
  @property
  def dtype(self) -> np.dtype: ...
  @property
  def location(self) -> tuple[str, int]: ...
  def read(self) -> np.ndarray: ...


Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor on disk.

  Attributes:
    offset: of its first element in the file, in bytes.
    strides: in elements, where the tensor is not contiguous.
    crc: checksum of its bytes, where the file states one.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  path: pathlib.Path
  offset: int
  strides: tuple[int, ...] | None = None
  crc: int | None = None

  @property
  def location(self) -> tuple[str, int]:
    return str(self.path), self.offset

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """Returns the tensor as an array of its own.

    Raises:
      ConvertError: the file ends within the tensor, or its checksum is wrong.
    """
    count = math.prod(self.shape)
    if self.strides is not None:
      count = 1 + sum(
        (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
      )
    flat = np.empty(count, self.dtype)
    with self.path.open('rb') as file:
      file.seek(self.offset)
      nbytes = file.readinto(flat.view(np.uint8).data)
    if nbytes != flat.nbytes:
      raise ConvertError(f'{self.path}: ends within a tensor; the file is truncated')
    if self.crc is not None and zlib.crc32(flat.view(np.uint8).data) != self.crc:
      raise ConvertError(
        f'{self.path}: the checksum of a tensor is wrong; the file is corrupt'
      )
    if self.strides is not None:
      steps = [s * self.dtype.itemsize for s in self.strides]
      return np.ascontiguousarray(
        np.lib.stride_tricks.as_strided(flat, self.shape, steps)
      )
    return flat.reshape(self.shape)

  def layer(self, index: int) -> 'StoredTensor':
    """Returns one entry of the leading axis."""
    size = self.nbytes // self.shape[0]
    return dataclasses.replace(
      self, shape=self.shape[1:], offset=self.offset + index * size
    )


@dataclasses.dataclass(frozen=True)
class ArrayTensor:
  """A tensor in memory."""

  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  @property
  def location(self) -> tuple[str, int]:
    return '', 0

  def read(self) -> np.ndarray:
    return self.array


def shape_of(tensors: Tensors, name: str, rank: int) -> tuple[int, ...] | None:
  """Returns the shape of a tensor; None where it is absent.

  Raises:
    ConvertError: it has another number of axes, or an empty one.
  """
  if name not in tensors:
    return None
  shape = tuple(tensors[name].shape)
  if len(shape) != rank or 0 in shape:
    raise ConvertError(f'{name} has shape {shape}, expected {rank} axes, none empty')
  return shape


def is_floating(dtype: np.dtype) -> bool:
  return dtype.kind == 'f' or dtype.name == 'bfloat16'


def check_finite(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
  """Returns the array itself if it is of finite floating numbers.

  Args:
    path: names the file in the error.
    name: names the tensor.

  Raises:
    ConvertError: it is of another dtype, or has values that are not finite.
  """
  if not is_floating(array.dtype):
    raise ConvertError(
      f'{path}: {name} has dtype {array.dtype}, expected a floating one'
    )
  if not np.isfinite(array).all():
    raise ConvertError(f'{path}: {name} has values that are not finite')
  return array
