"""Pickles: none is run, and damage ends in one line."""

import io
import pickle
import shutil
import zipfile

import pytest

from tests.weights.damage import refused, shards


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), 'w'))


def as_bin(path, data: bytes):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x/data.pkl', data)


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_malicious_pickle_is_not_run(root, tmp_path, protocol):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  as_bin(path, pickle.dumps({'a': Evil(tmp_path / 'ran')}, protocol))
  refused(folder, path.name, 'open, which weights do not need; it was not run')
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\x80\x02',
    b'\x80\x02K\x01.',
    b'\x80\x02}X\x01\x00\x00\x00aK\x01s.',
    b'\x80\x02ctorch\nload\n.',
    b'\x80\x02cbuiltins\neval\n.',
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.',
    b'\x80\x02(X\x01\x00\x00\x00atQ.',
    b'garbage',
  ],
)
def test_nonsense_in_a_pickle(root, tmp_path, data):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  as_bin(path, data)
  refused(folder, path.name)


def test_a_tensor_that_reaches_beyond_its_bytes(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  buffer = io.BytesIO()
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, 'w') as new:
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, data[:-4] if name.endswith('/data/0') else data)
  path.write_bytes(buffer.getvalue())
  refused(folder, path.name, 'reaches beyond its bytes')


def test_an_old_pytorch_file_is_named(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  path.write_bytes(pickle.dumps({'a': 1}, 2))
  refused(folder, path.name, 'PyTorch before 1.6')
