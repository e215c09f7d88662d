"""Short clips in which every frame shows its own number, and what can befall them."""

import fractions
import pathlib
from collections.abc import Iterable, Sequence

import av
import numpy as np

BITS, SIDE = 9, 16
WIDTH, HEIGHT, RATE = BITS * SIDE, 64, 25
X264 = {'g': '50', 'preset': 'veryfast', 'threads': '1'}


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
  """Returns frame `number`, `uint8[H, W, 3]`: its bits are squares along the top."""
  frame = np.full((height, width, 3), 110, np.uint8)
  for bit in range(BITS):
    left = bit * SIDE
    frame[:SIDE, left : left + SIDE] = 235 if number >> bit & 1 else 16
  frame[-SIDE:, :SIDE] = (220, 20, 20)
  left = SIDE + 2 * number % (width - 3 * SIDE)
  frame[24:40, left : left + SIDE] = (20, 60, 220)
  return frame


def number_of(frame: np.ndarray) -> int:
  """Returns the number that an upright frame shows."""
  squares = frame[3 : SIDE - 3].astype(np.float32)
  means = [squares[:, b * SIDE + 3 : (b + 1) * SIDE - 3].mean() for b in range(BITS)]
  return sum(1 << bit for bit, mean in enumerate(means) if mean > 125)


def numbers_of(frames: Iterable[np.ndarray]) -> list[int]:
  """Returns the numbers that frames show."""
  return [number_of(frame) for frame in frames]


def sample(numbers: Sequence[int], count: int) -> list[int]:
  """Returns what a uniform sample of displayed frames shows."""
  return [numbers[int(i)] for i in np.linspace(0, len(numbers) - 1, count)]


def write(
  path: pathlib.Path,
  count: int = 150,
  codec: str = 'libx264',
  pix_fmt: str = 'yuv420p',
  times: Sequence[int] | None = None,
  size: tuple[int, int] = (WIDTH, HEIGHT),
  container: dict[str, str] | None = None,
  rate: int | fractions.Fraction = RATE,
  sound: tuple[int, int] | None = None,
  **options: str,
) -> pathlib.Path:
  """Writes frames 0 to `count` - 1 as a clip.

  Args:
    rate: frames a second.
    sound: seconds from which and up to which there is silence to hear.
    times: of display, in frames; None: one after the other.
    container: options of the container; `options` are those of the codec.
  """
  options = {**(X264 if codec == 'libx264' else {}), **options}
  tick = fractions.Fraction(1, rate)
  with av.open(str(path), 'w', options=container or {}) as out:
    stream = out.add_stream(codec, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = tick
    silence = out.add_stream('pcm_s16le', rate=11025, layout='mono') if sound else None
    # Ahead of the video, as with encoders that look far ahead: FFmpeg sees no picture
    # when it opens such a Matroska file.
    for second in range(*sound or (0,)):
      frame = av.AudioFrame.from_ndarray(np.zeros((1, 11025), np.int16), layout='mono')
      frame.sample_rate, frame.pts = 11025, second * 11025
      frame.time_base = fractions.Fraction(1, 11025)
      out.mux(silence.encode(frame))
    for number in range(count):
      frame = av.VideoFrame.from_ndarray(draw(number, *size), format='rgb24')
      frame.pts = times[number] if times else number
      frame.time_base = tick
      out.mux(stream.encode(frame))
    out.mux(stream.encode())
  return path


def copy_packets(
  source: pathlib.Path,
  path: pathlib.Path,
  drop: Iterable[int] = (),
  shift: int = 0,
) -> pathlib.Path:
  """Copies the packets of a clip without coding them again.

  Args:
    drop: numbers of packets that are lost.
    shift: frames by which times of display are moved; an mp4 hides those that become
      negative by an edit list.
  """
  with av.open(str(source)) as clip, av.open(str(path), 'w') as out:
    stream = clip.streams.video[0]
    copy = out.add_stream_from_template(stream)
    ticks = round(shift / RATE / stream.time_base)
    for number, packet in enumerate(p for p in clip.demux(stream) if p.size):
      if number not in set(drop):
        packet.stream = copy
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        out.mux(packet)
  return path


def turn(source: pathlib.Path, path: pathlib.Path, matrix: tuple) -> pathlib.Path:
  """Copies an mp4 with another display matrix (a, b, c, d), as phones write them."""
  data = bytearray(source.read_bytes())
  header = data.index(b'tkhd') + 4
  first = header + (52 if data[header] == 1 else 40)
  for offset, value in zip((0, 4, 12, 16), matrix, strict=True):  # 16.16 fixed point
    place = first + offset
    data[place : place + 4] = (value * 65536).to_bytes(4, 'big', signed=True)
  path.write_bytes(data)
  return path


def halve(
  source: pathlib.Path, path: pathlib.Path, zeros: bool = False
) -> pathlib.Path:
  """Writes the first half of a file, and zeros in place of the rest if asked to."""
  data = source.read_bytes()
  half = len(data) // 2
  path.write_bytes(data[:half] + (bytes(len(data) - half) if zeros else b''))
  return path
