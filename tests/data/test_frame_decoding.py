"""The frames of a file are those that a player shows, whichever reader decodes it."""

import av
import numpy as np
import pytest

from tests.data import clips
from vlm_rlaif_jax.data import frame_decoding, packets
from vlm_rlaif_jax.data.packets import VideoError

X265 = 'log-level=none:keyint=60:min-keyint=60'
UNUSUAL = {  # name -> how it is written; all of 150 frames
  'long_groups.mp4': {'codec': 'libx265', 'x265-params': X265},
  'b_frames.avi': {'codec': 'mpeg4', 'bf': '2', 'g': '250'},
  'stream.ts': {},
  'mpeg2.mpg': {'codec': 'mpeg2video', 'bf': '2'},
  'mpeg2.ts': {'codec': 'mpeg2video', 'bf': '2'},
  'windows.wmv': {'codec': 'wmv2'},
  'web.webm': {'codec': 'libvpx', 'deadline': 'realtime'},
  'matroska.mkv': {},
  'open.mp4': {'x264-params': 'open-gop=1:keyint=50:min-keyint=50'},
  'odd.mp4': {'pix_fmt': 'yuv444p', 'size': (145, 65)},
  'ten_bits.mp4': {'pix_fmt': 'yuv420p10le'},
  'interlaced.mp4': {'x264-params': 'interlaced=1'},
  'fragments.mp4': {'container': {'movflags': 'frag_keyframe+empty_moov'}},
}
USUAL = {
  'plain.mp4': {},
  'plain.mov': {},
  'no_b_frames.mp4': {'bf': '0'},
  'variable_rate.mp4': {'times': [i + 2 * (i // 3) for i in range(150)]},
  'front.mp4': {'container': {'movflags': 'faststart'}},
}
WHOLE = slice(None)
# (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y).
TURNS = {
  'by 90 degrees': (0, 1, -1, 0),
  'by 180 degrees': (-1, 0, 0, -1),
  'by 270 degrees': (0, -1, 1, 0),
  'mirrored': (-1, 0, 0, 1),
  'upside down': (1, 0, 0, -1),
  'transposed': (0, 1, 1, 0),
}


def numbers(path, count=8):
  return clips.numbers_of(frame_decoding.sample_file(path, count, WHOLE))


@pytest.mark.parametrize('name', [*UNUSUAL, *USUAL])
def test_frames_are_those_that_a_player_shows(tmp_path, name):
  path = clips.write(tmp_path / name, **{**UNUSUAL, **USUAL}[name])
  for count in (8, 50):
    assert numbers(path, count) == clips.sample(range(150), count)
  assert frame_decoding.jumps_are_exact(path, packets.scan(path)) == (name in USUAL)


@pytest.mark.parametrize('name', USUAL)
def test_where_jumps_are_exact_both_readers_agree_to_the_bit(tmp_path, name):
  pytest.importorskip('decord')
  path = clips.write(tmp_path / name, **USUAL[name])
  found = packets.scan(path)
  for count, window in ((50, WHOLE), (8, slice(2, 5)), (200, WHOLE)):
    jumps = frame_decoding.read_decord(path, 150, count, window, np.asarray)
    whole = frame_decoding.read_av(path, found, count, window, np.asarray)
    assert jumps is not None
    np.testing.assert_array_equal(jumps, whole)


@pytest.mark.parametrize('ending', ['mp4', 'mkv'])
def test_a_cut_begins_where_a_player_begins(tmp_path, ending):
  """`-c copy` keeps what comes before the cut, and an edit list hides it."""
  whole = clips.write(tmp_path / 'whole.mp4')
  cut = clips.copy_packets(whole, tmp_path / f'cut.{ending}', range(50), shift=70)
  first = 70 if ending == 'mp4' else 50  # Matroska hides nothing
  assert not packets.scan(cut).exact_jumps
  assert numbers(cut) == clips.sample(range(first, 150), 8)
  assert numbers(cut, 50) == clips.sample(range(first, 150), 50)


def test_frames_of_a_lost_keyframe_are_not_shown(tmp_path):
  whole = clips.write(tmp_path / 'whole.mp4')
  lost = clips.copy_packets(whole, tmp_path / 'lost.mp4', [0])
  assert packets.scan(lost).claimed_frames == 149
  assert numbers(lost) == clips.sample(range(50, 150), 8)
  assert numbers(lost, 50) == clips.sample(range(50, 150), 50)


@pytest.mark.parametrize('turn', TURNS)
@pytest.mark.parametrize('codec', ['libx264', 'libx265'])
def test_the_display_matrix_turns_and_mirrors(tmp_path, turn, codec):
  options = {'x265-params': X265} if codec == 'libx265' else {}
  level = clips.write(tmp_path / 'level.mp4', 20, codec, **options)
  turned = clips.turn(level, tmp_path / 'turned.mp4', TURNS[turn])
  stored = frame_decoding.sample_file(level, 4, WHOLE)
  shown = frame_decoding.sample_file(turned, 4, WHOLE)
  a, b, c, d = TURNS[turn]
  height, width = stored.shape[1:3]
  for y, x in ((0, 0), (5, 20), (height - 1, width - 1)):
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x += (width - 1) * (a < 0) + (height - 1) * (c < 0)
    to_y += (width - 1) * (b < 0) + (height - 1) * (d < 0)
    np.testing.assert_array_equal(shown[:, to_y, to_x], stored[:, y, x])


def test_a_short_video_repeats_frames_and_a_window_is_cut_out(tmp_path):
  path = clips.write(tmp_path / 'v.avi', 3, 'mpeg4')
  assert numbers(path, 5) == [0, 0, 1, 1, 2]
  part = frame_decoding.sample_file(path, 5, slice(1, 4))
  assert clips.numbers_of(part) == [0, 1, 1]


@pytest.mark.parametrize(
  ('name', 'zeros', 'options'),
  [
    ('half.mp4', False, {'container': {'movflags': 'faststart'}}),
    ('half_and_zeros.mp4', True, {'container': {'movflags': 'faststart'}}),
    ('half.mkv', False, {}),
    ('half.avi', False, {'codec': 'mpeg4', 'g': '250'}),
    ('half.wmv', False, {'codec': 'wmv2'}),
    ('half.webm', False, {'codec': 'libvpx', 'deadline': 'realtime'}),
    ('half.flv', False, {}),
  ],
)
def test_half_a_download_is_named_with_both_numbers(tmp_path, name, zeros, options):
  whole = clips.write(tmp_path / f'whole_{name}', **options)
  assert numbers(whole) == clips.sample(range(150), 8)
  half = clips.halve(whole, tmp_path / name, zeros)
  pattern = rf'{name}: \d+ frames, up to [0-3]\.\d s, can be decoded, and its header '
  pattern += r'claims (150 frames and 6\.0 s|6\.\d s); if it is half a download'
  with pytest.raises(VideoError, match=pattern):
    numbers(half)


def test_a_broken_packet_in_the_middle_is_skipped(tmp_path):
  whole = clips.write(tmp_path / 'whole.mp4', g='25')
  data = bytearray(whole.read_bytes())
  import av

  with av.open(str(whole)) as container:
    stored = [packet.pos for packet in container.demux(video=0) if packet.size]
  data[stored[60] : stored[60] + 64] = bytes(64)
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes(data)
  assert not packets.scan(broken).exact_jumps
  shown = numbers(broken, 300)
  assert {*range(55), *range(75, 150)} <= set(shown)


def test_what_is_no_video_is_named(tmp_path):
  sound = tmp_path / 'sound.mp4'
  import av

  with av.open(str(sound), 'w') as out:
    stream = out.add_stream('aac', rate=8000)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
    )
    frame.sample_rate = 8000
    out.mux(stream.encode(frame))
    out.mux(stream.encode())
  with pytest.raises(VideoError, match=r'sound\.mp4: has no video'):
    numbers(sound)
  text = tmp_path / 'text.mp4'
  text.write_text('<html>not found</html>' * 9)
  with pytest.raises(VideoError, match=r'text\.mp4: cannot be decoded \(Invalid data'):
    numbers(text)


@pytest.mark.parametrize(
  ('name', 'container'),
  [
    ('stream.mkv', {'live': '1'}),
    ('stream.flv', {'flvflags': 'no_duration_filesize'}),
    ('stream.ts', {}),
  ],
)
def test_half_of_a_stream_is_a_shorter_video(tmp_path, name, container):
  """Nothing in it says how long the whole was; see docs/data.md."""
  whole = clips.write(tmp_path / name, container=container)
  half = tmp_path / f'half_{name}'
  half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
  assert numbers(whole, 4) == [0, 49, 99, 149]
  first, *_, last = numbers(half, 4)
  assert first == 0 and 40 < last < 110


@pytest.mark.parametrize('ending', ['mp4', 'mp3'])
def test_the_cover_picture_of_music_is_no_video(tmp_path, ending):
  path = tmp_path / f'music.{ending}'
  with av.open(str(path), 'w') as out:
    sound = out.add_stream('libmp3lame', rate=44100, layout='stereo')
    cover = out.add_stream('mjpeg', rate=25)
    cover.width, cover.height, cover.pix_fmt = 64, 64, 'yuvj420p'
    cover.disposition = av.stream.Disposition.attached_pic
    silence = np.zeros((2, 1152), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, format='fltp', layout='stereo')
    frame.sample_rate = 44100
    picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), 'rgb24')
    out.mux([*cover.encode(picture), *cover.encode(None)])
    out.mux([*sound.encode(frame), *sound.encode(None)])
  with pytest.raises(VideoError, match='has sound and a cover picture, but no video'):
    numbers(path)
