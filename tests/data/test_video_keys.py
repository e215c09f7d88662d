import os
import shutil

import pytest

from vlm_rlaif_jax.data.video import VideoError
from vlm_rlaif_jax.data.video_keys import VideoIndex, by_name, sample_key, together


@pytest.fixture
def places(tmp_path):
  root, folder = tmp_path / 'root', tmp_path / 'features'
  (root / 'a').mkdir(parents=True)
  folder.mkdir()
  (root / 'v.mp4').write_bytes(b'one')
  for number in range(3):
    (root / 'a' / f'{number}.png').write_bytes(b'picture %d' % number)
  return root, folder


PICTURES = ('a/0.png', 'a/1.png', 'a/2.png')


def test_contents_name_a_video_wherever_it_is(places, tmp_path):
  root, folder = places
  index = VideoIndex(root, folder, 0)
  video, pictures = index.contents(('v.mp4',)), index.contents(PICTURES)
  assert video != pictures
  shutil.copytree(root, tmp_path / 'elsewhere')
  os.utime(tmp_path / 'elsewhere' / 'v.mp4', (1, 1))
  (tmp_path / 'elsewhere' / 'a').rename(tmp_path / 'elsewhere' / 'b')
  moved = VideoIndex(tmp_path / 'elsewhere', folder, 0)
  assert moved.contents(('v.mp4',)) == video
  assert moved.contents(tuple(path.replace('a', 'b') for path in PICTURES)) == pictures
  assert index.contents(PICTURES[::-1]) != pictures


def test_a_replaced_file_has_another_name(places):
  root, folder = places
  index = VideoIndex(root, folder, 0)
  before, pictures = index.contents(('v.mp4',)), index.contents(PICTURES)
  (root / 'v.mp4').write_bytes(b'two')  # as long as before
  os.utime(root / 'v.mp4', (5, 5))
  (root / 'a/1.png').write_bytes(b'another picture')
  assert index.contents(('v.mp4',)) != before
  assert index.contents(PICTURES) != pictures


def test_contents_are_read_once(places, monkeypatch):
  root, folder = places
  early, first = VideoIndex(root, folder, 1), VideoIndex(root, folder, 0)
  names = first.contents(('v.mp4',)), first.contents(PICTURES)
  with first.file.open('a') as file:
    file.write('half a li')
  monkeypatch.setattr(VideoIndex, '_read', None)
  early.load()
  for index in (early, VideoIndex(root, folder, 1)):
    assert (index.contents(('v.mp4',)), index.contents(PICTURES)) == names


def test_what_cannot_be_read_is_named(places):
  index = VideoIndex(*places, 0)
  with pytest.raises(VideoError, match=r'3\.png: no such file'):
    index.contents((*PICTURES, 'a/3.png'))


def test_swapped_videos_are_other_videos():
  first = {('a.mp4',): 'x', ('b.mp4',): 'y'}
  assert by_name(first) == by_name(dict(reversed(first.items())))
  assert by_name(first) != by_name({('a.mp4',): 'y', ('b.mp4',): 'x'})
  assert together(first.values()) == together(['y', 'x'])


def test_a_clip_has_its_own_key():
  keys = {sample_key('x', None), sample_key('x', (0, 4)), sample_key('y', None)}
  assert len(keys) == 3
