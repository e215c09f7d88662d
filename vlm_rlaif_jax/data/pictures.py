"""Reads pictures as a viewer shows them: upright, 8 bits a color, no animation.

Transparency is dropped, as CLIP's image processor drops it; color profiles are not
applied.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data.packets import VideoError

EXTENSIONS = (
  '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff', '.avif',
)  # fmt: skip
JPEG = b'\xff\xd8\xff'  # how one starts, and a stream of them
STREAMS_OF_JPEG = ('.mjpeg', '.mjpg')
# JPEGs of cameras may hold a second picture (a preview, another eye): the first counts.
NOT_ANIMATED = {'MPO', 'JPEG'}


def read_pictures(
  paths: Sequence[pathlib.Path],
  transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
  """Returns pictures of one size as frames, `uint8[F, H, W, 3]`.

  Args:
    transform: applied to each picture.

  Raises:
    VideoError: a picture that cannot be read, or pictures of different sizes.
  """
  frames, shapes = [], set()
  for path in paths:
    picture = read_picture(path)
    shapes.add(f'{picture.shape[1]}x{picture.shape[0]}')
    frames.append(transform(picture) if transform else picture)
  if len(shapes) > 1:
    raise VideoError(f'{paths[0].parent}: frames of different sizes: {sorted(shapes)}')
  return np.stack(frames)


def is_jpeg(path: pathlib.Path) -> bool:
  """Returns whether a file is a JPEG, whatever its name; its EXIF has to be read."""
  if path.suffix.lower() in STREAMS_OF_JPEG:
    return False
  with contextlib.suppress(OSError), path.open('rb') as file:
    return file.read(len(JPEG)) == JPEG
  return False


def read_picture(path: pathlib.Path) -> np.ndarray:
  """Returns a picture, `uint8[H, W, 3]`."""
  from PIL import Image

  try:
    with warnings.catch_warnings():
      # A large picture is no error, and a broken tag that nobody reads is none.
      warnings.simplefilter('ignore')
      with Image.open(path) as picture:
        pages = getattr(picture, 'n_frames', 1)
        if pages > 1 and picture.format not in NOT_ANIMATED:
          raise VideoError(
            f'{path}: holds {pages} pictures; write the one that is meant as a picture '
            'of its own, or an animation as a video file'
          )
        return to_rgb(_upright(picture), path, picture.format or '')
  except VideoError:
    raise
  except Exception as error:  # PIL raises SyntaxError, ValueError, struct.error, ...
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise VideoError(f'{path}: cannot be decoded ({reason})') from None


def _upright(picture: Any) -> Any:
  """Returns an open picture turned and mirrored as its EXIF orientation says."""
  from PIL import ExifTags, Image

  picture.load()  # a TIFF is turned by that, and its tag removed
  orientation = 1
  with contextlib.suppress(Exception):  # viewers show pictures whose EXIF is broken
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
  turn = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
  }.get(orientation)
  return picture if turn is None else picture.transpose(turn)


def to_rgb(picture: Any, path: pathlib.Path, file_format: str) -> np.ndarray:
  """Returns an open picture as `uint8[H, W, 3]`; of 16 bits, the upper eight.

  Args:
    file_format: of PIL, which a picture that was turned has lost.
  """
  if picture.mode == 'P' and 'transparency' in picture.info:
    picture = picture.convert('RGBA')
  if picture.mode.startswith('I') or picture.mode == 'F':
    values = np.asarray(picture)
    # mode I is of 16 bits in these formats, in a TIFF it has no range
    is_wide = picture.mode == 'I' and file_format not in ('PNG', 'PPM')
    if picture.mode == 'F' or is_wide or values.min() < 0 or values.max() > 65535:
      raise VideoError(
        f'{path}: {"fractions" if picture.mode == "F" else "32-bit numbers"} in place '
        'of colors, whose range nothing says; convert it to 8 or 16 bits'
      )
    gray = (values >> 8).astype(np.uint8)
    return np.stack([gray] * 3, axis=-1)
  return np.array(picture.convert('RGB'))
