"""Checkpoints of every kind, shared by the tests."""

import shutil

import pytest

from tests.weights import checkpoints


@pytest.fixture(scope='session')
def root(tmp_path_factory):
  """ours, llava, hf and bins: one network as every kind of file."""
  folder = tmp_path_factory.mktemp('whole')
  checkpoints.write_base(folder / 'ours')
  checkpoints.write_foreign(folder / 'llava', folder / 'ours', 'llava')
  checkpoints.write_bins(folder / 'bins', folder / 'llava')
  checkpoints.write_foreign(folder / 'hf', folder / 'ours', 'hf')
  return folder


@pytest.fixture(params=['llava', 'bins'])
def folder(request, root, tmp_path):
  """A copy that a test may break, as safetensors and as .bin."""
  return shutil.copytree(root / request.param, tmp_path / 'broken')


@pytest.fixture
def adapter(tmp_path):
  folder = tmp_path / 'adapter'
  checkpoints.write_adapter(folder)
  return folder
