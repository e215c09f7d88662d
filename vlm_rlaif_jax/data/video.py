"""Reads frames from a video file or from a folder of pictures.

Frames are chosen by number, never by time: with a variable frame rate the two differ.
"""

import dataclasses
import os
import pathlib
import stat

import numpy as np

from vlm_rlaif_jax.data import pictures
from vlm_rlaif_jax.data.frame_decoding import Transform, sample_file, uniform_indices
from vlm_rlaif_jax.data.packets import VideoError


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
    return len(self.paths) == 1 and not self.paths[0].lower().endswith(
      pictures.EXTENSIONS
    )

  def frames(self, sampled: int) -> int:
    """Returns the frames of the sample if `sampled` are read from the whole video."""
    return sampled if self.clip is None else self.clip[1] - self.clip[0]


def read_frames(
  video: Video,
  root: str | pathlib.Path,
  count: int,
  transform: Transform | None = None,
) -> np.ndarray:
  """Returns the sampled frames of a video, cut to its clip.

  Args:
    video: file or pictures, relative to `root`.
    count: frames sampled from the whole video.
    transform: applied to each frame, so that large ones are not kept; None for none.

  Returns:
    `uint8[F, H, W, 3]`; F is `count`, or the length of the clip.

  Raises:
    VideoError: a missing or unreadable file, with its name.
  """
  paths = [pathlib.Path(root) / path for path in video.paths]
  for path in paths:
    check_file(path)
  window = slice(*video.clip) if video.clip else slice(None)
  if video.is_file and not pictures.is_jpeg(paths[0]):
    return sample_file(paths[0], count, window, transform)
  numbers = uniform_indices(len(paths), count) if len(paths) != count else range(count)
  return pictures.read_pictures([paths[i] for i in numbers][window], transform)


def check_file(path: pathlib.Path) -> os.stat_result:
  """Returns the status of a file; raises VideoError if it is none, or empty."""
  try:
    status = path.stat()
  except OSError as error:
    if isinstance(error, FileNotFoundError):
      raise VideoError(f'{path}: no such file') from None
    raise VideoError(f'{path}: cannot be read ({error.strerror})') from None
  if stat.S_ISDIR(status.st_mode):
    raise VideoError(f'{path}: a folder; list its pictures in `images` instead')
  if not stat.S_ISREG(status.st_mode):
    raise VideoError(f'{path}: no such file, but something else of that name')
  if not status.st_size:
    raise VideoError(f'{path}: an empty file')
  return status
