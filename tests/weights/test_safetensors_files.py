"""Headers of safetensors that do not fit their files."""

import json
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy

from tests.weights.damage import refused, shards
from vlm_rlaif_jax.weights import (
  tensor_files,
)
from vlm_rlaif_jax.weights.errors import ConvertError


def edit_header(path, change):
  data = path.read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = change(json.loads(data[8 : 8 + length]))
  text = (header if isinstance(header, str) else json.dumps(header)).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + length :])


def first_entry(**changes):
  """Changes fields of the tensor that comes first."""

  def change(header):
    name = next(n for n in header if n != '__metadata__')
    fields = {key: new(header[name]) for key, new in changes.items()}
    return {**header, name: {**header[name], **fields}}

  return change


def all_at_the_start(header):
  entries = {}
  for name, entry in header.items():
    if name != '__metadata__':
      first, stop = entry['data_offsets']
      entries[name] = {**entry, 'data_offsets': [0, stop - first]}
  return entries


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda h: [1], 'a list, expected a dict'),
    (lambda h: None, 'a NoneType, expected a dict'),
    (lambda h: '[' * 100_000, 'its header is corrupt'),
    (lambda h: {**h, '__metadata__': [1]}, '__metadata__ is not a dict of texts'),
    (lambda h: {**h, '__metadata__': {'a': 1}}, '__metadata__ is not a dict of texts'),
    (all_at_the_start, 'begins at byte'),
    (
      first_entry(data_offsets=lambda e: [-8, e['data_offsets'][1] - 8]),
      'its header is corrupt',
    ),
    (
      first_entry(data_offsets=lambda e: [float(x) for x in e['data_offsets']]),
      'its header is corrupt',
    ),
    (first_entry(data_offsets=lambda e: [0]), 'its header is corrupt'),
    (first_entry(shape=lambda e: [float(x) for x in e['shape']]), 'header is corrupt'),
    (first_entry(shape=lambda e: [-x for x in e['shape']]), 'header is corrupt'),
    (first_entry(shape=lambda e: 'ab'), 'its header is corrupt'),
    (first_entry(dtype=lambda e: ['F32']), 'its header is corrupt'),
    (
      first_entry(dtype=lambda e: 'F8_E4M3'),
      'has dtype F8_E4M3, expected one of F64',
    ),
    (first_entry(dtype=lambda e: 'F16'), 'its shape needs'),
  ],
)
def test_a_header_that_does_not_fit_the_file(root, tmp_path, change, message):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  edit_header(shards(folder)[0], change)
  refused(folder, shards(folder)[0].name, message)


def test_bytes_after_the_tensors(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  path = shards(folder)[0]
  path.write_bytes(path.read_bytes() + bytes(12))
  refused(folder, path.name, 'has 12 bytes after')


def test_a_gap_between_tensors(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file({'a': np.ones(4, np.float32)}, path)
  edit_header(path, first_entry(data_offsets=lambda e: [4, 16], shape=lambda e: [3]))
  with pytest.raises(ConvertError, match='a begins at byte'):
    tensor_files.read_file(path)


def test_tensors_without_elements_are_read(tmp_path):
  path = tmp_path / 'x.safetensors'
  empty, one = np.ones((0, 3), np.float32), np.ones((), np.float32)
  safetensors.numpy.save_file({'a': empty, 'b': one, 'c': empty}, path)
  assert {n: t.shape for n, t in tensor_files.read_file(path).items()} == {
    'a': (0, 3), 'b': (), 'c': (0, 3),
  }  # fmt: skip
