import os

import numpy as np
import pytest
from PIL import Image

from vlm_rlaif_jax.data import video
from vlm_rlaif_jax.data.video import Video, VideoError
from vlm_rlaif_jax.data.world import render
from vlm_rlaif_jax.data.world.scene import sample_scene


@pytest.fixture
def clip(tmp_path, rng):
  frames = render.render(sample_scene(rng))
  render.write_mp4(frames, tmp_path / 'clip.mp4')
  return frames


def test_indices_are_a_truncated_linspace():
  np.testing.assert_array_equal(video.uniform_indices(5, 3), [0, 2, 4])
  np.testing.assert_array_equal(video.uniform_indices(3, 5), [0, 0, 1, 1, 2])
  np.testing.assert_array_equal(video.uniform_indices(1, 4), [0, 0, 0, 0])
  # The tempting integer form differs, first at 120 frames of which 50 are taken.
  integer = np.arange(50) * 119 // 49
  assert (video.uniform_indices(120, 50) != integer).any()


def test_frames_of_an_mp4(tmp_path, clip):
  frames = video.read_frames(Video(('clip.mp4',)), tmp_path, 12)
  assert frames.shape == (12, 64, 64, 3)
  assert frames.dtype == np.uint8
  taken = clip[video.uniform_indices(len(clip), 12)]
  assert np.abs(frames.astype(int) - taken).mean() < 4


def test_a_clip_is_part_of_the_sampled_frames(tmp_path, clip):
  whole = video.read_frames(Video(('clip.mp4',)), tmp_path, 12)
  part = video.read_frames(Video(('clip.mp4',), (4, 8)), tmp_path, 12)
  np.testing.assert_array_equal(part, whole[4:8])


def test_a_folder_of_pictures(tmp_path, clip):
  from PIL import Image

  names = []
  for index, frame in enumerate(clip[:6]):
    names.append(f'{index:02d}.png')
    Image.fromarray(frame).save(tmp_path / names[-1])
  frames = video.read_frames(Video(tuple(names)), tmp_path, 6)
  np.testing.assert_array_equal(frames, clip[:6])
  fewer = video.read_frames(Video(tuple(names)), tmp_path, 3)
  np.testing.assert_array_equal(fewer, clip[[0, 2, 5]])


def test_unreadable_videos_are_named(tmp_path):
  (tmp_path / 'broken.mp4').write_bytes(b'not a video' * 100)
  with pytest.raises(VideoError, match=r'broken\.mp4: cannot be decoded'):
    video.read_frames(Video(('broken.mp4',)), tmp_path, 4)
  with pytest.raises(VideoError, match=r'absent\.mp4: no such file'):
    video.read_frames(Video(('absent.mp4',)), tmp_path, 4)
  (tmp_path / 'frames').mkdir()
  with pytest.raises(VideoError, match='frames: a folder; list its pictures in `imag'):
    video.read_frames(Video(('frames',)), tmp_path, 4)
  (tmp_path / 'empty.mp4').touch()
  with pytest.raises(VideoError, match=r'empty\.mp4: an empty file'):
    video.read_frames(Video(('empty.mp4',)), tmp_path, 4)
  os.mkfifo(tmp_path / 'pipe.mp4')  # opening one waits for a writer
  with pytest.raises(VideoError, match=r'pipe\.mp4: no such file, but something'):
    video.read_frames(Video(('pipe.mp4',)), tmp_path, 4)
  with pytest.raises(VideoError, match=r'07\.jpg: no such file'):
    video.read_frames(Video(('07.jpg', '08.jpg')), tmp_path, 2)


def test_a_truncated_file_is_named(tmp_path, clip):
  data = (tmp_path / 'clip.mp4').read_bytes()
  (tmp_path / 'cut.mp4').write_bytes(data[: len(data) // 2])
  with pytest.raises(VideoError, match=r'cut\.mp4'):
    video.read_frames(Video(('cut.mp4',)), tmp_path, 12)


def test_pictures_of_other_names_are_read_as_pictures(tmp_path):
  """FFmpeg would leave EXIF orientation alone, or give one tile of several."""
  picture = Image.fromarray(np.zeros((24, 48, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  for name in ('a.jpg', 'a.avif'):
    picture.save(tmp_path / name, exif=exif)
    exif[0x0112] = 6  # which PIL takes out for AVIF
  data = (tmp_path / 'a.jpg').read_bytes()
  for name in ('b.jfif', 'c', 'd.jpg.part'):
    (tmp_path / name).write_bytes(data)
  for name in ('a.jpg', 'a.avif', 'b.jfif', 'c', 'd.jpg.part'):
    frames = video.read_frames(Video((name,)), tmp_path, 1)
    assert frames.shape == (1, 48, 24, 3), name
  (tmp_path / 'p.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(99))
  with pytest.raises(VideoError, match=r'p\.heic: a HEIC picture; write it as a JPEG'):
    video.read_frames(Video(('p.heic',)), tmp_path, 1)
