"""`preprocessor_config.json`: what a tower reads, which is the same for every CLIP."""

import math
import pathlib
from typing import Any

from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights.json_section import Section, read_json

FILE = 'preprocessor_config.json'
_FLAGS = ('do_resize', 'do_rescale', 'do_normalize', 'do_convert_rgb')
_NUMBERS = {  # and the values that `data.image` and `inference.features` compute with
  'rescale_factor': [1 / 255],
  'resample': [3],  # bicubic
  'image_mean': [float(x) for x in image.MEAN],
  'image_std': [float(x) for x in image.STD],
}


def check(folder: pathlib.Path) -> None:
  """Raises ConvertError if a folder asks for other pixels than CLIP's.

  Sizes follow from the tower, and the square from `data.aspect`.
  """
  path = folder / FILE
  if not path.is_file():
    return
  config = Section(read_json(path), f'{path}: ')
  for name in _FLAGS:
    config.choice(name, (True, None))
  for name, expected in _NUMBERS.items():
    value = config.values.get(name)
    numbers = value if isinstance(value, list) else [value]
    if value is not None and not _are_close(numbers, expected):
      raise config.error(name, ', '.join(f'{x:.6g}' for x in expected))


def _are_close(numbers: list[Any], expected: list[float]) -> bool:
  return len(numbers) == len(expected) and all(
    isinstance(x, int | float) and math.isclose(x, y, abs_tol=1e-5)
    for x, y in zip(numbers, expected, strict=True)
  )


def to_json(cfg: VlmConfig) -> dict[str, Any]:
  """Returns the file for CLIP's image processor in transformers."""
  size = cfg.vision.image_size
  return {
    'image_processor_type': 'CLIPImageProcessor',
    'do_resize': True,
    'size': {'shortest_edge': size},
    'resample': 3,
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [float(x) for x in image.MEAN],
    'image_std': [float(x) for x in image.STD],
    'do_convert_rgb': True,
    'processor_class': 'LlavaProcessor',
  }
