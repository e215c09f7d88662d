"""Renders a scene as pixels, and writes pixels to an mp4 file."""

import fractions
import pathlib
from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.data.world import scene as scenes

BACKGROUND = (88, 92, 98)


def render(
  scene: scenes.Scene, numbers: range | np.ndarray = range(scenes.FRAMES)
) -> np.ndarray:
  """Returns the frames of a scene with these numbers, `uint8[F, CANVAS, CANVAS, 3]`."""
  frames = np.empty((len(numbers), scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frames[:] = BACKGROUND
  for thing in scene.things:
    centers, visible, colors = scenes.trajectory(thing)
    for picture, number in zip(frames, numbers, strict=True):
      if visible[number]:
        draw(picture, thing.shape, colors[number], centers[number])
  return frames


def draw(
  picture: np.ndarray, shape: str, color: str, center: Sequence[float] | np.ndarray
) -> None:
  """Paints one shape into `uint8[H, W, 3]`, in place, with soft edges."""
  height, width = picture.shape[:2]
  reach = scenes.RADIUS + 2
  x0, y0 = (max(0, int(c) - reach) for c in center)
  x1, y1 = min(width, x0 + 2 * reach + 1), min(height, y0 + 2 * reach + 1)
  part = picture[y0:y1, x0:x1]
  y, x = np.mgrid[y0:y1, x0:x1]
  x, y = x - center[0], y - center[1]
  r = scenes.RADIUS
  match shape:  # signed distance to the edge (pixels), positive inside
    case 'circle':
      inside = r - np.hypot(x, y)
    case 'ring':
      inside = 2.0 - np.abs(np.hypot(x, y) - (r - 2))
    case 'square':
      inside = (r - 1) - np.maximum(np.abs(x), np.abs(y))
    case _:  # triangle
      inside = np.minimum((r - 1) - y, (y + r) * 0.45 - np.abs(x) * 0.9)
  cover = np.clip(inside + 0.5, 0, 1)[..., None]
  painted = part * (1 - cover) + np.asarray(scenes.COLORS[color]) * cover
  part[:] = np.rint(painted).astype(np.uint8)


def write_mp4(frames: np.ndarray, path: pathlib.Path, fps: int = scenes.FPS) -> None:
  """Writes `uint8[F, H, W, 3]` as H.264; the same frames give the same bytes."""
  import av

  with av.open(str(path), 'w', format='mp4', options={'fflags': '+bitexact'}) as out:
    stream = out.add_stream('libx264', rate=fractions.Fraction(fps))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    # A fixed quantizer without look-ahead: with x264's macroblock tree, the same
    # frames gave two different files about once in twenty clips.
    stream.options = {'qp': '16', 'preset': 'veryfast', 'rc-lookahead': '0'}
    stream.codec_context.thread_count = 1
    for picture in frames:
      for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')):
        out.mux(packet)
    for packet in stream.encode():
      out.mux(packet)
