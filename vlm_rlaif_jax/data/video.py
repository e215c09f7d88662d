"""Reads frames from a video file or from a folder of pictures.

decord reads files where it has a wheel, PyAV elsewhere and where decord gives up.
Frames are chosen by number, never by time: with a variable frame rate the two differ.
"""

import dataclasses
import pathlib

import numpy as np

from vlm_rlaif_jax.settings.build import UserError


class VideoError(UserError):
  """A video that cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Video:
  """Where the frames of one sample are.

  Attributes:
    paths: one video file, or the pictures of its frames in order of time.
    clip: (first, stop) of the *sampled* frames that belong to the sample; None: all.
  """

  paths: tuple[str, ...]
  clip: tuple[int, int] | None = None

  @property
  def is_file(self) -> bool:
    """Returns whether it is one file, not pictures of its frames."""
    return len(self.paths) == 1 and not self.paths[0].lower().endswith(PICTURES)

  def frames(self, sampled: int) -> int:
    """Returns the frames of the sample if `sampled` are read from the whole video."""
    return sampled if self.clip is None else self.clip[1] - self.clip[0]


PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


def uniform_indices(available: int, count: int) -> np.ndarray:
  """Returns `count` frame numbers from first to last: `linspace(0, n - 1, count)`.

  They are truncated, which is not the same as i (n - 1) // (count - 1) for some n. A
  short video repeats frames.
  """
  return np.linspace(0, available - 1, count).astype(np.int64)


def read_frames(video: Video, root: str | pathlib.Path, count: int) -> np.ndarray:
  """Returns the sampled frames of a video, cut to its clip.

  Args:
    video: file or pictures, relative to `root`.
    count: frames sampled from the whole video.

  Returns:
    `uint8[F, H, W, 3]`; F is `count`, or the length of the clip.

  Raises:
    VideoError: a missing or unreadable file, with its name.
  """
  paths = [pathlib.Path(root) / path for path in video.paths]
  for path in paths:
    if path.is_dir():
      raise VideoError(f'{path}: a folder; list its pictures in `images` instead')
    if not path.is_file():
      raise VideoError(f'{path}: no such file')
  window = slice(*video.clip) if video.clip else slice(None)
  if video.is_file:
    return _read_file(paths[0], count, window)
  chosen = uniform_indices(len(paths), count) if len(paths) != count else range(count)
  return _read_pictures([paths[i] for i in chosen][window])


def _read_file(path: pathlib.Path, count: int, window: slice) -> np.ndarray:
  """Returns frames by the first reader that can decode the file."""
  errors = []
  for reader in (_read_decord, _read_av):
    try:
      frames = reader(path, count, window)
    except ImportError as error:  # decord has wheels for x86-64 Linux only
      errors.append(f'{reader.__name__[6:]}: {error}')
      continue
    except Exception as error:  # each library has its own family of errors
      reason = str(error).strip().splitlines()
      errors.append(f'{reader.__name__[6:]}: {reason[-1] if reason else error!r}')
      continue
    if frames.ndim == 4 and frames.shape[-1] == 3 and len(frames):
      return frames
    errors.append(f'{reader.__name__[6:]}: frames of shape {frames.shape}')
  raise VideoError(f'{path}: cannot be decoded ({"; ".join(errors)})')


def _read_decord(path: pathlib.Path, count: int, window: slice) -> np.ndarray:
  """Returns frames by decord."""
  import decord

  # One reader a call, one thread a reader: parallelism is over files, and a reader must
  # never cross a fork.
  reader = decord.VideoReader(str(path), num_threads=1)
  if not len(reader):
    raise VideoError('no frames')
  return reader.get_batch(uniform_indices(len(reader), count)[window]).asnumpy()


def _read_av(path: pathlib.Path, count: int, window: slice) -> np.ndarray:
  """Returns frames by PyAV, in two passes: at most `count` frames are in memory.

  The container's own frame count is not trusted.
  """
  import av

  with av.open(str(path)) as container:
    available = sum(1 for _ in container.decode(video=0))
  if not available:
    raise VideoError('no frames')
  numbers = uniform_indices(available, count)[window]
  frames: dict[int, np.ndarray] = {}
  with av.open(str(path)) as container:
    for number, frame in enumerate(container.decode(video=0)):
      if number in numbers:
        frames[number] = frame.to_ndarray(format='rgb24')
      if number >= numbers[-1]:
        break
  return np.stack([frames[int(number)] for number in numbers])


def _read_pictures(paths: list[pathlib.Path]) -> np.ndarray:
  """Returns pictures of one size as frames."""
  from PIL import Image

  frames = []
  for path in paths:
    try:
      with Image.open(path) as picture:
        frames.append(np.asarray(picture.convert('RGB')))
    except OSError as error:
      raise VideoError(f'{path}: cannot be decoded ({error})') from None
  if len({frame.shape for frame in frames}) > 1:
    shapes = sorted({f'{f.shape[1]}x{f.shape[0]}' for f in frames})
    raise VideoError(f'{paths[0].parent}: frames of different sizes: {shapes}')
  return np.stack(frames)
