"""Time to read the frames of a video: as a player shows them, and by jumping.

  python -m launch.bench data                    # clips that are made for it
  python -m launch.bench data --videos=FOLDER    # your own

What exactness costs: `exact` is what a stage does, `by jumps` what decord does if its
count of frames and its jumps are trusted, which is wrong for some files; those are
marked. `process` is `exact` with the frames cut to squares in a process of its own, as
stages do, and `here` the same without the process.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from vlm_rlaif_jax.settings.build import UserError

_VIDEOS = flags.DEFINE_string(
  'videos', '', 'data: folder of videos to read; default: clips made for it.'
)
_FRAMES = flags.DEFINE_list('frames', ['8', '50'], 'data: frames sampled of a video.')
SIZE = 336  # of the squares that CLIP reads
COLUMNS = (
  f'{"video":<26}{"frames":>7}{"of":>7}{"reader":>8}{"exact s":>9}{"by jumps s":>12}'
  f'{"":>8}{"here s":>9}{"process s":>11}'
)
CLIPS = {  # name -> how it is written
  'h264.mp4': ('libx264', {'g': '250'}),
  'h264_short_groups.mp4': ('libx264', {'g': '30'}),
  'h264.mkv': ('libx264', {'g': '250'}),
  'h265.mp4': ('libx265', {'x265-params': 'log-level=none:keyint=60'}),
}


def data(rounds: int) -> dict:
  """Prints and returns seconds for each video, count of frames and way to read."""
  counts = [int(count) for count in _FRAMES.value]
  figures = {}
  with tempfile.TemporaryDirectory() as folder:
    paths = _videos(pathlib.Path(folder))
    print(f'processor time by the reader, fastest of {rounds} rounds\n{COLUMNS}')
    for path in paths:
      for count in counts:
        row = _measure(path, count, rounds)
        figures[f'{path.name} {count}'] = row
        jumps = f'{row["by_jumps_s"]:12.3f}' if row['by_jumps_s'] else f'{"fails":>12}'
        print(
          f'{path.name[:25]:<26}{count:7}{row["available"]:7}{row["reader"]:>8}'
          f'{row["exact_s"]:9.3f}{jumps}{"wrong" if row["jumps_wrong"] else "":>8}'
          f'{row["here_s"]:9.3f}{row["process_s"]:11.3f}',
          flush=True,
        )
  return figures


def _videos(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the videos of --videos, or clips of 640 x 360, 20 seconds each."""
  if _VIDEOS.value:
    paths = sorted(p for p in pathlib.Path(_VIDEOS.value).iterdir() if p.is_file())
    if not paths:
      raise UserError(f'--videos={_VIDEOS.value}: no file there')
    return paths
  return [
    write_clip(folder / name, codec, options)
    for name, (codec, options) in CLIPS.items()
  ]


def write_clip(
  path: pathlib.Path, codec: str, options: dict[str, str], count: int = 600
) -> pathlib.Path:
  """Writes moving noise on a gradient, 30 frames a second."""
  import av

  rng = np.random.default_rng(0)
  height, width = 360, 640
  y, x = np.mgrid[:height, :width]
  gradient_image = np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
  patch = rng.integers(0, 256, (96, 96, 3), np.uint8)
  with av.open(str(path), 'w') as out:
    stream = out.add_stream(codec, rate=30, options={'preset': 'fast', **options})
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'  # type: ignore
    for number in range(count):
      picture = np.roll(gradient_image, 2 * number, axis=1)
      left = 3 * number % (width - 96)
      picture[number % 256 : number % 256 + 96, left : left + 96] = patch
      frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
      out.mux(stream.encode(frame))  # type: ignore[union-attr]
    out.mux(stream.encode())  # type: ignore[union-attr]
  return path


def _measure(path: pathlib.Path, count: int, rounds: int) -> dict:
  """Returns how long each way to read a video takes, and whether they agree."""
  from vlm_rlaif_jax.data import frame_decoding, image, packets
  from vlm_rlaif_jax.data.decoder_pool import DecoderPool
  from vlm_rlaif_jax.settings.sections import DataConfig

  whole = slice(None)
  packet_facts = packets.scan(path)
  exact, exact_s = _fastest(
    lambda: frame_decoding.sample_file(path, count, whole), rounds, time.process_time
  )
  jumps, jumps_s = _fastest(lambda: by_jumps(path, count), rounds, time.process_time)
  square = functools.partial(image.square, size=SIZE, aspect='pad')
  _, here_s = _fastest(
    lambda: frame_decoding.sample_file(path, count, whole, square),
    rounds,
    time.perf_counter,
  )
  settings = DataConfig(root=str(path.parent), frames=count)
  with DecoderPool(settings, SIZE) as pool:
    pool.read((path.name,))  # which starts the process
    _, process_s = _fastest(lambda: pool.read((path.name,)), rounds, time.perf_counter)
  return {
    'available': packet_facts.displayable,
    'reader': 'decord'
    if frame_decoding.jumps_are_exact(path, packet_facts)
    else 'PyAV',
    'exact_s': exact_s,
    'by_jumps_s': jumps_s if jumps is not None else None,
    'jumps_wrong': jumps is None or not np.array_equal(jumps, exact),
    'here_s': here_s,
    'process_s': process_s,
  }


def by_jumps(path: pathlib.Path, count: int) -> np.ndarray | None:
  """Returns frames as decord counts and finds them; None if it cannot."""
  try:
    import decord
  except ImportError:
    return None
  from vlm_rlaif_jax.data.frame_decoding import uniform_indices

  decord.logging.set_level(decord.logging.QUIET)
  try:
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(uniform_indices(len(reader), count)).asnumpy()
  except decord.DECORDError:
    return None


def _fastest(
  work: Callable[[], Any], rounds: int, clock: Callable[[], float]
) -> tuple[Any, float]:
  """Returns the last result and the seconds of the fastest round."""
  seconds, result = [], None
  for _ in range(rounds):
    start = clock()
    result = work()
    seconds.append(clock() - start)
  return result, min(seconds)
