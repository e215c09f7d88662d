"""Files are looked at once, and never decoded."""

import os
import pathlib

import pytest

from vlm_rlaif_jax.data import files
from vlm_rlaif_jax.data.files import PART, DataFiles


def test_what_is_wrong_with_a_path(tmp_path):
  (tmp_path / 'good.mp4').write_bytes(b'x')
  (tmp_path / 'empty.mp4').write_bytes(b'')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'link.mp4').symlink_to('nowhere.mp4')
  names = ['good.mp4', 'empty.mp4', 'folder', 'link.mp4', 'no/x.mp4', 'x' * 300]
  problems = DataFiles(tmp_path, 2).problems(names)
  assert problems == {
    'empty.mp4': f'{tmp_path}/empty.mp4: empty',
    'folder': f'{tmp_path}/folder: a folder; list its pictures in `images` instead',
    'link.mp4': f'{tmp_path}/link.mp4: no such file',
    'no/x.mp4': f'{tmp_path}/no/x.mp4: no such file',
    'x' * 300: f'{tmp_path}/{"x" * 300}: File name too long',
  }


def test_a_folder_of_frames_is_listed_and_not_looked_at_by_file(tmp_path, monkeypatch):
  (tmp_path / 'v').mkdir()
  frames = [f'v/{i:04}.jpg' for i in range(50)]
  for frame in frames[:-1]:
    (tmp_path / frame).write_bytes(b'x')
  looks = []
  stat = pathlib.Path.stat

  def count(self, **more):
    looks.append(self)
    return stat(self, **more)

  monkeypatch.setattr(pathlib.Path, 'stat', count)
  problems = DataFiles(tmp_path, 2).problems(frames)
  assert list(problems) == ['v/0049.jpg'] and 'no such file' in problems['v/0049.jpg']
  assert [path.name for path in looks] == ['0049.jpg']


def test_a_link_to_nothing_among_many_files(tmp_path):
  for i in range(files.LISTED):
    (tmp_path / f'{i}.mp4').write_bytes(b'x')
  (tmp_path / 'link.mp4').symlink_to('nowhere.mp4')
  names = [*(f'{i}.mp4' for i in range(files.LISTED)), 'link.mp4']
  assert list(DataFiles(tmp_path, 2).problems(names)) == ['link.mp4']


@pytest.mark.parametrize('size', [7, 3 * PART, 10 * PART + 1])
def test_the_same_contents_under_several_names(tmp_path, size):
  content = bytes(range(256)) * (size // 256 + 1)
  content = content[:size]
  (tmp_path / 'b.mp4').write_bytes(content)
  (tmp_path / 'copy.mp4').write_bytes(content)
  os.link(tmp_path / 'b.mp4', tmp_path / 'hard.mp4')
  (tmp_path / 'soft.mp4').symlink_to('b.mp4')
  (tmp_path / 'same_size.mp4').write_bytes(content[:-1] + b'!')
  (tmp_path / 'longer.mp4').write_bytes(content + b'!')
  names = ['b', 'copy', 'hard', 'soft', 'same_size', 'longer', 'missing']
  samples = {name: (f'{name}.mp4',) for name in names}
  assert DataFiles(tmp_path, 2).same(samples) == [['b', 'copy', 'hard', 'soft']]


def test_only_files_of_one_size_are_read(tmp_path, monkeypatch):
  for i in range(4):
    (tmp_path / f'{i}.mp4').write_bytes(b'x' * (i + 1))
  monkeypatch.setattr(DataFiles, '_contents', None)
  assert DataFiles(tmp_path, 2).same({str(i): (f'{i}.mp4',) for i in range(4)}) == []
