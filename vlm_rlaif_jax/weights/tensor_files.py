"""Files of weights by their kind: safetensors or PyTorch, in one file, in shards.

Only headers are read here; `StoredTensor.read` fetches one tensor.
"""

import json
import math
import pathlib

import numpy as np

from vlm_rlaif_jax.weights import safetensors_files, torch_files
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.json_section import read_json
from vlm_rlaif_jax.weights.safetensors_files import Shapes, Writer
from vlm_rlaif_jax.weights.tensors import StoredTensor

SHARD = 5 * 10**9  # bytes of a shard, as is usual on the hub


def read_file(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of one file of weights, of either kind."""
  try:
    with path.open('rb') as file:
      start = file.read(8)
    if start[:4] == b'PK\x03\x04':
      return torch_files.read(path)
    if path.suffix == '.safetensors':
      return safetensors_files.read(path)
  except OSError as error:
    raise ConvertError(f'{path}: cannot be read ({error.strerror})') from None
  raise ConvertError(
    f'{path}: expected safetensors or a PyTorch zip file (files of PyTorch before 1.6 '
    'are not read; save them again with a newer version)'
  )


def read_shards(folder: pathlib.Path, stem: str) -> dict[str, StoredTensor] | None:
  """Returns the tensors of `<stem>.safetensors` or `.bin`, in one file or in shards.

  The order is that of transformers: one file before shards, safetensors before `.bin`.
  A folder that was saved again, in another form, still has files of the first time.

  Returns:
    None where the folder has neither.
  """
  for suffix, name in (('safetensors', stem), ('bin', f'pytorch_{stem}')):
    file = folder / f'{name}.{suffix}'
    if file.is_file():
      return read_file(file)
    index = folder / f'{file.name}.index.json'
    if index.is_file():
      return _read_index(index)
  return None


def _read_index(index: pathlib.Path) -> dict[str, StoredTensor]:
  weight_map = read_json(index).get('weight_map')
  if not (weight_map and isinstance(weight_map, dict)) or not all(
    isinstance(file, str) and pathlib.PurePath(file).name == file
    for file in weight_map.values()
  ):
    raise ConvertError(f'{index}: has no weight_map of tensor and file names')
  shards = sorted(set(weight_map.values()))
  absent = [file for file in shards if not (index.parent / file).is_file()]
  if absent:
    raise ConvertError(f'{index}: names shards that are missing: {join_names(absent)}')
  tensors: dict[str, StoredTensor] = {}
  for file in shards:
    shard = read_file(index.parent / file)
    listed = {name for name, place in weight_map.items() if place == file}
    if lacking := sorted(listed - shard.keys()):
      raise ConvertError(
        f'{index.parent / file}: lacks tensors that {index.name} lists: '
        f'{join_names(lacking)}'
      )
    if repeated := sorted(tensors.keys() & shard.keys()):
      raise ConvertError(f'{index.parent / file}: repeats {join_names(repeated)}')
    tensors |= shard
  return tensors


# ---------------------------------------------------------------- writing


class ShardWriter:
  """Several safetensors files with an index, as `transformers` lays them out."""

  def __init__(self, folder: pathlib.Path, shapes: Shapes, limit: int = SHARD):
    groups: list[dict[str, tuple[tuple[int, ...], np.dtype]]] = [{}]
    size = total = 0
    for name, (shape, dtype) in shapes.items():
      nbytes = math.prod(shape) * dtype.itemsize
      if groups[-1] and size + nbytes > limit:
        groups.append({})
        size = 0
      groups[-1][name] = (shape, dtype)
      size, total = size + nbytes, total + nbytes
    files = ['model.safetensors']
    if len(groups) > 1:
      count = len(groups)
      files = [f'model-{i + 1:05}-of-{count:05}.safetensors' for i in range(count)]
      weight_map = {
        name: file for file, group in zip(files, groups, strict=True) for name in group
      }
      index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
      (folder / 'model.safetensors.index.json').write_text(
        json.dumps(index, indent=2) + '\n'
      )
    self._writers = [
      Writer(folder / file, group, {'format': 'pt'})
      for file, group in zip(files, groups, strict=True)
    ]

  def put(self, name: str, array: np.ndarray) -> None:
    for writer in self._writers:
      if name in writer.shapes:
        writer.put(name, array)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


class MemoryWriter:
  """The interface of `Writer`, into arrays."""

  def __init__(self, shapes: Shapes):
    self.arrays = {
      name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()
    }

  def put(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    self.arrays[name][... if index is None else index] = array

  def close(self) -> None:
    pass
