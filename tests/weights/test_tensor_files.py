"""Files of weights, in one file or in shards: damage ends in one line."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.weights import checkpoints
from tests.weights.damage import altered, refused, shards
from vlm_rlaif_jax.weights import conversion, network_files, tensor_files, torch_files


def test_missing_shard(folder):
  lost = shards(folder)[1]
  lost.unlink()
  refused(folder, 'missing', lost.name, '.index.json')


def test_truncated_shard(folder):
  cut = shards(folder)[1]
  cut.write_bytes(cut.read_bytes()[:-200])
  refused(folder, cut.name, 'truncated')


def test_header_cut_off(folder):
  cut = shards(folder)[0]
  cut.write_bytes(cut.read_bytes()[:6])
  refused(folder, cut.name)


def test_corrupt_bytes_of_a_bin_are_found_by_its_checksums(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  file = shards(folder)[0]
  data = bytearray(file.read_bytes())
  stored = next(iter(tensor_files.read_file(file).values()))
  data[stored.offset] ^= 0xFF
  file.write_bytes(bytes(data))
  refused(folder, file.name, 'corrupt')


def test_corrupt_header(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  file = shards(folder)[0]
  data = bytearray(file.read_bytes())
  data[8:12] = b'\xff\xff\xff\xff'
  file.write_bytes(bytes(data))
  refused(folder, file.name, 'corrupt')


def test_unreadable_index(folder):
  (index,) = folder.glob('*.index.json')
  index.write_text('[]')
  refused(folder, index.name, 'contains a list, expected a dict')
  index.write_text('{"weight_map": {"a": "../../elsewhere"}}')
  refused(folder, index.name, 'no weight_map of tensor and file names')


def test_no_tensors(root, tmp_path):
  refused(
    altered(root / 'llava', tmp_path / 'a', lambda t: {}),
    'its files contain no tensors',
  )
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (index,) = folder.glob('*.index.json')
  for where in ({}, None):
    index.write_text(json.dumps({'weight_map': where}))
    refused(folder, index.name, 'no weight_map of tensor and file names')


@pytest.mark.parametrize('kind', ['llava', 'bins'])
def test_one_file_is_read_before_the_shards_of_an_earlier_time(root, tmp_path, kind):
  """transformers reads model.safetensors, whatever index lies beside it."""
  folder = shutil.copytree(root / kind, tmp_path / 'twice')
  tensors = {name: 2 * x for name, x in checkpoints.read_folder(root / 'llava').items()}
  if kind == 'llava':
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  else:
    torch_files.write(folder / 'pytorch_model.bin', tensors)
  assert list(folder.glob('*.index.json'))
  found = network_files.read_network(folder).tensors['lm_head.weight'].read()
  np.testing.assert_array_equal(found, tensors['lm_head.weight'])


def test_safetensors_are_read_before_bins(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'both')
  torch_files.write(
    folder / 'pytorch_model.bin', {'lm_head.weight': np.zeros((64, 16))}
  )
  found = network_files.read_network(folder).tensors['lm_head.weight'].read()
  old = checkpoints.read_folder(root / 'llava')['lm_head.weight']
  np.testing.assert_array_equal(found, old)


def test_weights_in_64_bits_become_those_in_32(root, tmp_path):
  wide = lambda tensors: {n: x.astype(np.float64) for n, x in tensors.items()}
  folder = altered(root / 'llava', tmp_path / 'in', wide)
  conversion.convert(folder, tmp_path / 'out', conversion.Request())
  checkpoints.assert_same(tmp_path / 'out', checkpoints.without_joint())
