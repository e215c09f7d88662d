"""Reads the frames of a video file as a player shows them.

The right frames are those of a decode from front to back: edit lists are followed,
frames that a lost keyframe makes undecodable are absent, and the display matrix turns
the picture. A header's count of frames and jumps by number are not trusted. So the file
is decoded once by PyAV, with the number of frames predicted from its packets, and once
more where the prediction was wrong.

decord jumps to the frames that are asked for, which saves time where they are far
apart. It reads a file only if the packets prove that its jumps are exact; see
`jumps_are_exact`.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import packets as stored
from vlm_rlaif_jax.data.packets import Packets, VideoError

Transform = Callable[[np.ndarray], np.ndarray]


def uniform_indices(available: int, count: int) -> np.ndarray:
  """Returns `count` frame numbers from first to last: `linspace(0, n - 1, count)`.

  They are truncated, which is not the same as i (n - 1) // (count - 1) for some n. A
  short video repeats frames.
  """
  return np.linspace(0, available - 1, count).astype(np.int64)


def sample_file(
  path: pathlib.Path, count: int, window: slice, transform: Transform | None = None
) -> np.ndarray:
  """Returns the frames of a uniform sample of a file.

  Args:
    count: frames sampled from the whole file.
    window: of these, the ones that are returned.
    transform: applied to each frame as it is decoded.

  Returns:
    `uint8[F, H, W, 3]`.

  Raises:
    VideoError: the file cannot be decoded, or is shorter than it claims to be.
  """
  from av.error import FFmpegError

  transform = transform or np.asarray
  try:
    packets = stored.scan(path)
    frames = None
    if jumps_are_exact(path, packets):
      frames = read_decord(path, packets.stored, count, window, transform)
    if frames is None:
      frames = read_av(path, packets, count, window, transform)
  except VideoError:
    raise
  except (FFmpegError, OSError, ValueError, ArithmeticError) as error:
    reason = getattr(error, 'strerror', None) or str(error) or repr(error)
    raise VideoError(
      f'{path}: cannot be decoded ({reason.strip().splitlines()[-1]})'
    ) from None
  return np.stack(frames)


def jumps_are_exact(path: pathlib.Path, packets: Packets) -> bool:
  """Returns whether decord gives the frames of a decode from front to back.

  That its packets allow it is not enough: decord converts the colors of interlaced
  frames otherwise, and it does not mirror. The first frame tells.
  """
  import av

  if not packets.exact_jumps:
    return False
  with av.open(str(path)) as container:
    frame = next(_decoded(container, stored.video_stream(container, path)), None)
  return frame is not None and not frame.interlaced_frame and _matrix(frame) is None


def read_decord(
  path: pathlib.Path, available: int, count: int, window: slice, transform: Transform
) -> list[np.ndarray] | None:
  """Returns sampled frames by decord; None where it is absent or gives up.

  Args:
    available: the frames that the file has.
  """
  try:
    import decord
  except ImportError:  # it has wheels for x86-64 Linux only
    return None
  decord.logging.set_level(decord.logging.QUIET)
  try:
    # One thread a reader: parallelism is over files.
    reader = decord.VideoReader(str(path), num_threads=1)
    if len(reader) != available:
      return None
    numbers = uniform_indices(available, count)[window]
    frames = {int(n): transform(reader[int(n)].asnumpy()) for n in np.unique(numbers)}
  except Exception:  # of several families; PyAV then says what is wrong
    return None
  return [frames[int(number)] for number in numbers]


def read_av(
  path: pathlib.Path,
  packets: Packets,
  count: int,
  window: slice,
  transform: Transform,
) -> list[np.ndarray]:
  """Returns sampled frames by PyAV; at most `count` of them are in memory.

  Raises:
    VideoError: no frame, or much less than the file claims to have.
  """
  expected = packets.displayable or 1
  for _ in range(2):
    numbers = uniform_indices(expected, count)[window]
    frames, available, end = _decode_numbers(path, set(numbers.tolist()), transform)
    if not available:
      raise VideoError(f'{path}: cannot be decoded (no frame can be shown)')
    if available == expected:
      break
    expected = available
  stored.check_length(path, packets, available, end)
  return [frames[int(number)] for number in numbers]


def _decode_numbers(
  path: pathlib.Path, numbers: set[int], transform: Transform
) -> tuple[dict[int, np.ndarray], int, float | None]:
  """Decodes a file from front to back.

  Returns:
    the frames with these numbers, how many there are, and where the last one ends (s);
    None if they have no times.
  """
  import av

  frames: dict[int, np.ndarray] = {}
  available, end, size = 0, None, None
  with av.open(str(path)) as container:
    stream = stored.video_stream(container, path)
    stream.codec_context.thread_count = 1  # parallelism is over files
    for frame in _decoded(container, stream):
      if available in numbers:
        # As players do, frames of another size become as large as the first.
        size = size or (frame.width, frame.height)
        picture = frame.to_ndarray(format='rgb24', width=size[0], height=size[1])
        frames[available] = transform(upright(picture, _matrix(frame)))
      # Frames that come at the end of a file have no time base of their own.
      if frame.pts is not None and stream.time_base:
        last = float((frame.pts + (frame.duration or 0)) * stream.time_base)
        end = last if end is None else max(end, last)
      available += 1
  return frames, available, end


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
  """Yields the frames of a stream in order of display; players skip broken packets."""
  from av.error import FFmpegError

  for packet in stored.read_packets(container, stream):
    try:
      yield from packet.decode()
    except FFmpegError:
      continue
  try:
    yield from stream.codec_context.decode(None)
  except FFmpegError:
    return


def _matrix(frame: Any) -> tuple[int, int, int, int] | None:
  """Returns the display matrix (a, b, c, d) of a frame, or None if it does nothing.

  A pixel at (x, y) is shown at (a x + c y, b x + d y).
  """
  side = frame.side_data.get('DISPLAYMATRIX')
  if side is None:
    return None
  a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
  return None if a > 0 and d > 0 and not b and not c else (a, b, c, d)


def upright(
  picture: np.ndarray, matrix: tuple[int, int, int, int] | None
) -> np.ndarray:
  """Returns a picture as its display matrix turns and mirrors it, by right angles."""
  if matrix is None:
    return picture
  a, b, c, d = matrix
  if abs(b) + abs(c) > abs(a) + abs(d):
    picture, a, d = np.swapaxes(picture, 0, 1), c, b
  if a < 0:
    picture = picture[:, ::-1]
  if d < 0:
    picture = picture[::-1]
  return np.ascontiguousarray(picture)
