"""Pads, crops and resizes images for CLIP, bit for bit as transformers with PIL."""

import numpy as np

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
BORDER = tuple(int(255 * mean) for mean in (0.48145466, 0.4578275, 0.40821073))


def squares(frames: np.ndarray, size: int, aspect: str) -> np.ndarray:
  """Returns frames as the squares that the tower reads.

  Args:
    frames: `uint8[F, H, W, 3]`.
    size: S, the tower's image size.
    aspect: 'pad' to a centered square on CLIP's mean color; 'crop' the center.

  Returns:
    `uint8[F, S, S, 3]`; `inference.features` normalizes them on the device.
  """
  return np.stack([square(frame, size, aspect) for frame in frames])


def square(frame: np.ndarray, size: int, aspect: str) -> np.ndarray:
  """Returns a frame `uint8[H, W, 3]` as `uint8[S, S, 3]`, resized by PIL's bicubic."""
  from PIL import Image

  height, width = frame.shape[:2]
  if aspect == 'pad' and height != width:
    side = max(height, width)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = BORDER
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = frame
    frame, height, width = canvas, side, side
  if min(height, width) != size:  # the shortest edge becomes S
    if width <= height:
      shape = (size, int(size * height / width))
    else:
      shape = (int(size * width / height), size)
    picture = Image.fromarray(frame).resize(shape, Image.Resampling.BICUBIC)
    frame = np.asarray(picture)
    height, width = frame.shape[:2]
  top, left = (height - size) // 2, (width - size) // 2
  return frame[top : top + size, left : left + size]
