"""`preprocessor_config.json`: the pixels that a tower reads, as transformers has it.

Mean, scale and filter are the same for every CLIP. What differs is how a frame becomes
a square: CLIPImageProcessor crops the center; LlavaImageProcessor pads first, if its
`do_pad` is on.
"""

import math
import pathlib
from typing import Any

from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import config_fields
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.json_section import Section, read_json

FILE = 'preprocessor_config.json'
_WHOLE = 'processor_config.json'  # has it as a section since transformers 5
_SECTION = 'image_processor'
_FLAGS = {  # and what else than on is the same to frames, which are RGB
  'do_resize': (True,),
  'do_rescale': (True,),
  'do_normalize': (True,),
  'do_convert_rgb': (True, None),
}
_NUMBERS = {  # and the values that `data.image` and `inference.features` compute with
  'rescale_factor': [1 / 255],
  'resample': [3],  # bicubic
  'image_mean': [float(x) for x in image.MEAN],
  'image_std': [float(x) for x in image.STD],
}
_CLASSES = ('CLIPImageProcessor', 'VideoLlavaImageProcessor', 'LlavaImageProcessor')
_TYPES = ('image_processor_type', 'feature_extractor_type')
_SQUARE = ('do_center_crop', 'do_pad', 'size', 'crop_size', 'default_to_square')
_FIELDS = (*_TYPES, *_FLAGS, *_NUMBERS, *_SQUARE, *config_fields.PREPROCESSOR)


def read(folder: pathlib.Path, size: int = 0) -> str:
  """Returns how frames become squares by the files of a folder, 'pad' or 'crop'.

  Args:
    size: pixels of an edge that the tower reads; 0: not known.

  Returns:
    '' where no file says it.

  Raises:
    ConvertError: names the field that asks for other pixels than ours.
  """
  aspects = {}
  if (folder / FILE).is_file():
    config = Section(read_json(folder / FILE), f'{folder / FILE}: ')
    aspects[FILE] = _read(config, size)
  if (folder / _WHOLE).is_file():
    whole = Section(read_json(folder / _WHOLE), f'{folder / _WHOLE}: ')
    if _SECTION in whole.values:
      aspects[_WHOLE] = _read(whole.section(_SECTION), size)
  if len(set(aspects.values())) > 1:
    raise ConvertError(
      f'{folder / FILE}: makes squares by {aspects[FILE]!r}, and {_WHOLE}, which newer '
      f'versions of transformers read instead, by {aspects[_WHOLE]!r}; expected the '
      'same: correct the one that does not say how the network was trained'
    )
  return next(iter(aspects.values()), '')


def _read(config: Section, size: int) -> str:
  """Returns 'pad' or 'crop' of one image processor."""
  config_fields.reject_unknown(config, _FIELDS)
  for name, values in _FLAGS.items():
    config.choice(name, values)
  for name, expected in _NUMBERS.items():
    value = config.values.get(name)
    numbers = value if isinstance(value, list) else [value]
    if value is not None and not _are_close(numbers, expected):
      raise config.error(name, ', '.join(f'{x:.6g}' for x in expected))
  pads = bool(config.choice('do_pad', (False, True, None)))
  crops = bool(config.choice('do_center_crop', (True, False, None)))
  _check_type(config, pads)
  if not pads and not crops:
    raise config.error(
      'do_center_crop',
      'True, or do_pad True of LlavaImageProcessor: frames are neither cropped nor '
      'padded here, so they are squashed or are no squares',
    )
  _check_sizes(config, size, pads, crops)
  return 'pad' if pads else 'crop'


def _are_close(numbers: list[Any], expected: list[float]) -> bool:
  return len(numbers) == len(expected) and all(
    isinstance(x, int | float) and math.isclose(x, y, abs_tol=1e-5)
    for x, y in zip(numbers, expected, strict=True)
  )


def _check_type(config: Section, pads: bool) -> None:
  """Raises ConvertError if the class of a processor computes something else."""
  field = next((name for name in _TYPES if config.values.get(name)), '')
  if not field:
    return
  name = str(config.values[field]).removesuffix('Fast').removesuffix('Pil')
  name = name.replace('FeatureExtractor', 'ImageProcessor')
  if name not in _CLASSES:
    raise config.error(field, ' or '.join(_CLASSES))
  if pads and name != 'LlavaImageProcessor':
    raise config.error(field, 'LlavaImageProcessor, as do_pad is True: no other pads')


def _check_sizes(config: Section, size: int, pads: bool, crops: bool) -> None:
  """Raises ConvertError unless the shortest edge, and the square, are the tower's."""
  edges = _edges(config, 'size')
  number = size or next(iter(edges.values()), 0)
  square = {'height': number, 'width': number}
  choices = [{'shortest_edge': number}, *([square] if pads else [])]
  if edges and edges not in choices:
    hint = '' if pads else ': a height and a width squash frames, an edge does not'
    raise config.error('size', ' or '.join(map(str, choices)) + hint)
  cropped = _edges(config, 'crop_size')
  if crops and cropped and number and cropped != square:
    raise config.error('crop_size', str(square))


def _edges(config: Section, name: str) -> dict[str, Any]:
  """Returns a size by the names of its edges; earlier files have a number."""
  value = config.values.get(name)
  is_square = name == 'crop_size' or config.values.get('default_to_square')
  if type(value) is int:
    names = ('height', 'width') if is_square else ('shortest_edge',)
    return dict.fromkeys(names, value)
  if value is not None and not isinstance(value, dict):
    raise config.error(name, 'a number, or a dict of edges')
  return {edge: x for edge, x in (value or {}).items() if x is not None}


def to_json(cfg: VlmConfig, aspect: str = 'crop') -> dict[str, Any]:
  """Returns the file for transformers.

  Args:
    aspect: 'pad' for LLaVA's image processor, 'crop' for CLIP's.
  """
  size = cfg.vision.image_size
  kinds: dict[str, dict[str, Any]] = {
    'pad': {'image_processor_type': 'LlavaImageProcessor', 'do_pad': True},
    'crop': {'image_processor_type': 'CLIPImageProcessor'},
  }
  return {
    **kinds[aspect],
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
