"""JSON files, and their fields checked as they are read."""

import dataclasses
import json
import pathlib
import reprlib
import sys
from typing import Any

from vlm_rlaif_jax.weights.errors import ConvertError

NULLABLE = (  # fields of config.json in which null means the same as absence
  'text_config', 'vision_config', 'rope_scaling', 'rope_parameters', 'rope_theta',
  'num_key_value_heads', 'head_dim', 'text_config_dict', 'vision_config_dict',
  'quantization_config', 'partial_rotary_factor',
)  # fmt: skip


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object of a JSON file.

  Raises:
    ConvertError: the file is missing, unreadable, or does not contain an object.
  """
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ConvertError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
    raise ConvertError(f'{path}: not JSON ({error})') from None
  except OSError as error:
    raise ConvertError(f'{path}: cannot be read ({error.strerror})') from None
  if not isinstance(value, dict):
    raise ConvertError(f'{path}: contains a {type(value).__name__}, expected a dict')
  return value


@dataclasses.dataclass(frozen=True)
class Section:
  """A JSON object whose fields are checked as they are read.

  Attributes:
    path: names it in errors, as in '/x/config.json: vision_config.'.
  """

  values: dict[str, Any]
  path: str = 'config.json: '

  def error(self, name: str, expected: str) -> ConvertError:
    """Returns the error of a field that is not as expected."""
    value = reprlib.repr(self.values[name]) if name in self.values else 'missing'
    return ConvertError(f'{self.path}{name} is {value}, expected {expected}')

  def first_present(self, *names: str) -> str:
    """Returns the first of several names of a field that is present, else the last."""
    return next((name for name in names if name in self.values), names[-1])

  def section(self, name: str) -> 'Section':
    """Returns an inner object; an empty one where it is absent or null."""
    value = self._get(name, {})
    if not isinstance(value, dict):
      raise self.error(name, 'a dict')
    return Section(value, f'{self.path}{name}.')

  def choice(self, name: str, choices: tuple[Any, ...]) -> Any:
    """Returns one of the choices; the first where the field is absent."""
    value = self.values.get(name, choices[0])
    if value not in choices:
      raise self.error(name, ' or '.join(repr(item) for item in choices if item != ''))
    return value

  def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
    """Returns an integer; without a default the field must be present."""
    value = self._get(name, default)
    if type(value) is not int or not least <= value < 1 << 31:
      raise self.error(name, f'an integer >= {least}')
    return value

  def positive(self, name: str, default: float | None = None) -> float:
    """Returns a positive number; without a default the field must be present."""
    value = self._get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise self.error(name, 'a positive number')
    if not 0 < value <= sys.float_info.max:
      raise self.error(name, 'a positive number')
    return float(value)

  def _get(self, name: str, default: Any) -> Any:
    value = self.values.get(name, default)
    return default if value is None and name in NULLABLE else value
