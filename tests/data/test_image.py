import jax
import numpy as np

from tests.tiny import clip_pixels
from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.inference import encoder


def test_padding_is_centered_on_the_mean_color():
  frame = np.full((4, 8, 3), 200, np.uint8)
  squared = image.square(frame, 8, 'pad')
  assert image.BORDER == (122, 116, 104)
  assert (squared[:2] == image.BORDER).all() and (squared[6:] == image.BORDER).all()
  assert (squared[2:6] == 200).all()


def test_odd_borders_are_floored():
  squared = image.square(np.zeros((3, 8, 3), np.uint8), 8, 'pad')
  dark = (squared == 0).all((1, 2))
  np.testing.assert_array_equal(np.flatnonzero(dark), [2, 3, 4])


def test_crop_takes_the_center(rng):
  frame = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
  np.testing.assert_array_equal(image.square(frame, 6, 'crop'), frame[:, 2:8])


def test_a_square_frame_of_the_right_size_is_only_normalized(rng):
  frames = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
  pixels = np.asarray(encoder.normalize(image.squares(frames, 8, 'pad')))
  assert pixels.dtype == np.float32
  np.testing.assert_allclose(
    pixels, (frames / 255 - image.MEAN) / image.STD, rtol=1e-5, atol=1e-6
  )


def test_frames_are_normalized_as_by_the_clip_image_processor():
  frames = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
  found = np.asarray(jax.jit(encoder.normalize)(frames))
  np.testing.assert_allclose(found, clip_pixels(frames), rtol=0, atol=5e-7)
