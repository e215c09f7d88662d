"""A few small frames of a video, as part of the page."""

import base64
import io
import pathlib
import weakref

import numpy as np

from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.frame_decoding import uniform_indices
from vlm_rlaif_jax.data.packets import VideoError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import BROKEN
from vlm_rlaif_jax.settings.sections import DataConfig

FRAMES = 5  # of a video, first and last among them
SIDE = 128  # pixels of the longer side
QUALITY = 70
BUDGET = 6_000_000  # bytes of all pictures of a page, as they are written


class Pictures:
  """Frames of videos as data URIs, each video read once.

  Attributes:
    bytes: of the pictures so far.
    unread: names of videos that cannot be read, and why.
    left_out: samples without pictures, because the page would be too large.
  """

  def __init__(self, budget: int):
    self.budget, self.bytes, self.left_out = budget, 0, 0
    self.unread: dict[str, str] = {}
    self._sources: dict[tuple, list[str]] = {}
    self._decoders: dict[int, DecoderPool] = {}  # by the frames of a whole video

  def strip(
    self, root: pathlib.Path | None, video: Video | None, sampled: int | None = None
  ) -> Html | None:
    """Returns frames of a video, or of its clip, side by side; None: there are none.

    Args:
      sampled: frames of the whole video, in which a clip is counted; None: not known.
    """
    if video is None or not video.paths or root is None:
      return None
    whole = FRAMES if video.clip is None else sampled
    if whole is None:
      return None  # frames of the whole video would be others
    sources = self._read(root, video, whole)
    size = sum(map(len, sources))
    if not sources:
      return None
    if self.bytes + size > self.budget:
      self.left_out += 1
      return None
    self.bytes += size
    name = video.paths[0]
    return tag(
      'div',
      *(
        tag(
          'img',
          src=source,
          alt=f'Frame {place} of {len(sources)} of {name}',
          loading='lazy',
          decoding='async',
        )
        for place, source in enumerate(sources, 1)
      ),
      class_='strip',
    )

  def _read(self, root: pathlib.Path, video: Video, sampled: int) -> list[str]:
    """Returns the frames as data URIs; none where the video cannot be read."""
    if sampled not in self._decoders:
      self._decoders[sampled] = DecoderPool(DataConfig(frames=sampled), 0)
      weakref.finalize(self, self._decoders[sampled].close)
    key = (str(root), video)
    if key not in self._sources:
      try:
        paths = tuple(str(root / path) for path in video.paths)
        frames = self._decoders[sampled].read(paths, video.clip)
        numbers = dict.fromkeys(uniform_indices(len(frames), FRAMES).tolist())
        self._sources[key] = [data_uri(frames[number]) for number in numbers]
      except (VideoError, *BROKEN) as error:
        self.unread[video.paths[0]] = str(error)
        self._sources[key] = []
    return self._sources[key]


def data_uri(frame: np.ndarray) -> str:
  """Returns a frame as a small JPEG, in place of its address.

  Args:
    frame: `uint8[H, W, 3]`.
  """
  from PIL import Image

  picture = Image.fromarray(frame)
  picture.thumbnail((SIDE, SIDE))
  buffer = io.BytesIO()
  picture.save(buffer, 'JPEG', quality=QUALITY, optimize=True)
  return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'
