"""A whole file is read, half a download is not, whatever its times and its sound."""

import fractions
import struct

import numpy as np
import pytest

from tests.data import clips
from vlm_rlaif_jax.data import frame_decoding, packets
from vlm_rlaif_jax.data.packets import VideoError

EVERY = slice(None)
FRONT = {'movflags': 'faststart'}
LATE = [25_000 + number for number in range(50)]  # from 1000 s on, for 2 s
CODECS = {  # of each container
  'wmv': {'codec': 'wmv2'},
  'avi': {'codec': 'mpeg4', 'bf': '2'},
  'webm': {'codec': 'libvpx', 'deadline': 'realtime'},
  'flv': {'container': {'max_interleave_delta': '0'}},  # packets in order of time
  'mp4': {'container': FRONT},
  'mov': {'container': FRONT},
}
X265 = {'codec': 'libx265', 'x265-params': 'log-level=none'}


def write(path, count, **options):
  codec = CODECS.get(path.suffix[1:], {})
  return clips.write(path, count, **{'g': '3', **codec, **options})


def numbers(path, count=4):
  """Returns the numbers of a sample of frames, which do not depend on the reader."""
  by_any = frame_decoding.sample_file(path, count, EVERY)
  by_av = frame_decoding.read_av(path, packets.scan(path), count, EVERY, np.asarray)
  assert clips.numbers_of(by_any) == clips.numbers_of(by_av)
  return clips.numbers_of(by_av)


def cut(path, share):
  """Returns a file with the first part of the bytes of another."""
  data = path.read_bytes()
  part = path.with_name(f'part_{path.name}')
  part.write_bytes(data[: int(len(data) * share)])
  return part


def assert_refused(path):
  with pytest.raises(VideoError, match=r'its header claims .*if it is half a download'):
    frame_decoding.sample_file(path, 4, EVERY)


@pytest.mark.parametrize('count', [4, 6])
@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('h264.mp4', {}),
    ('h264.mkv', {}),
    ('h264.flv', {}),
    ('h265.mp4', X265),
    ('ten_bits.mp4', {'pix_fmt': 'yuv420p10le'}),
  ],
)
def test_few_frames_that_come_when_the_decoder_is_emptied(
  tmp_path, name, options, count
):
  path = write(tmp_path / name, count, rate=1, **options)
  assert numbers(path, count) == list(range(count))


@pytest.mark.parametrize('ending', ['mkv', 'mp4', 'flv', 'avi'])
@pytest.mark.parametrize(
  ('count', 'options'),
  [
    (4, {'rate': fractions.Fraction(1, 5)}),
    (8, {'rate': 1, 'times': [5 * number for number in range(8)]}),
    (40, {'rate': 10, 'times': [*range(39), 440]}),
  ],
  ids=['5 s a frame', '5 s between frames', 'one long frame'],
)
def test_frames_that_are_shown_for_long(tmp_path, ending, count, options):
  path = write(tmp_path / f'v.{ending}', count, **options)
  assert numbers(path) == clips.sample(range(count), 4)


@pytest.mark.parametrize('ending', ['mkv', 'mp4', 'mov', 'flv', 'avi', 'wmv'])
def test_sound_that_is_longer_than_the_video(tmp_path, ending):
  path = write(tmp_path / f'v.{ending}', 100, sound=(0, 20))
  assert numbers(path) == [0, 33, 66, 99]
  if ending in ('mkv', 'flv', 'wmv'):  # the others have a length of the video alone
    assert_refused(cut(path, 0.6))


@pytest.mark.parametrize('ending', ['mkv', 'flv'])
def test_a_video_that_begins_when_the_sound_ends(tmp_path, ending):
  times = [250 + number for number in range(150)]
  path = write(tmp_path / f'v.{ending}', 150, times=times, sound=(0, 10))
  assert numbers(path) == [0, 49, 99, 149]
  assert_refused(cut(path, 0.95))


@pytest.mark.parametrize(
  'ending', ['mkv', 'webm', 'flv', 'mp4', 'mov', 'wmv', 'avi', 'ts']
)
def test_times_that_do_not_start_at_zero(tmp_path, ending):
  path = write(tmp_path / f'v.{ending}', 50, times=LATE)
  assert numbers(path) == [0, 16, 32, 49]
  if ending in ('mkv', 'webm', 'flv', 'mp4', 'mov', 'wmv'):
    # An index at the end is most of a small WMV.
    assert_refused(cut(path, 0.3 if ending == 'wmv' else 0.6))
  if ending != 'avi':  # repeats its first frame up to there
    assert packets.duration(path) == pytest.approx(2.0, abs=0.2)


def test_zeros_in_place_of_the_second_half_of_late_times(tmp_path):
  path = write(tmp_path / 'v.mp4', 50, times=LATE)
  assert_refused(clips.halve(path, tmp_path / 'half.mp4', zeros=True))


def test_a_duration_in_matroska_that_counts_from_the_first_time(tmp_path):
  """mkvmerge writes it so, FFmpeg's is the last time."""
  path = write(tmp_path / 'v.mkv', 50, times=LATE)
  data = path.read_bytes()
  place = data.index(b'\x44\x89\x88') + 3
  assert struct.unpack('>d', data[place : place + 8])[0] == pytest.approx(1_002_000, 1)
  path.write_bytes(data[:place] + struct.pack('>d', 2000.0) + data[place + 8 :])
  assert numbers(path) == [0, 16, 32, 49]
  assert_refused(cut(path, 0.6))


def test_an_flv_without_a_duration_claims_nothing(tmp_path):
  """FFmpeg takes the last time of the file for its duration."""
  options = {'flvflags': 'no_duration_filesize'}
  path = write(tmp_path / 'v.flv', 50, times=LATE, container=options)
  assert numbers(path) == [0, 16, 32, 49]
  assert packets.scan(path).claimed_s == 0
  assert packets.duration(path) == pytest.approx(2.0, abs=0.2)


def test_half_of_an_avi_with_repeated_frames(tmp_path):
  """It counts a frame that repeats the one before, which has no packet."""
  path = write(tmp_path / 'v.avi', 50, times=[5 * number for number in range(50)])
  assert packets.scan(path).claimed_frames > 240
  assert numbers(path) == [0, 16, 32, 49]
  assert_refused(cut(path, 0.5))


def test_the_duration_of_a_recording_that_was_streamed_is_that_of_its_packets(tmp_path):
  path = write(tmp_path / 'v.webm', 50, container={'live': '1'})
  assert packets.duration(path) == pytest.approx(2.0, abs=0.1)
  raw = write(tmp_path / 'v.h264', 50)  # without times
  with pytest.raises(packets.UntimedError, match='does not say how long it lasts'):
    packets.duration(raw)


def test_the_duration_of_a_video_is_not_that_of_its_sound(tmp_path):
  path = write(tmp_path / 'v.mov', 50, sound=(0, 8))
  assert packets.duration(path) == pytest.approx(2.0, abs=0.1)
