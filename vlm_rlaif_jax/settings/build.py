"""Converts frozen settings to the editable ConfigDict of a command line, and back.

    Run() -> to_config_dict -> configs/*.py and --config.a.b=c edit it ->
    from_config_dict

Nothing past `launch/` sees a ConfigDict, so no second default hides in the code.
"""

import dataclasses
import difflib
import re
import types
import typing
from typing import Any, Literal, TypeVar

import ml_collections

T = TypeVar('T')
_NAMES = re.compile(r'[\w.]+(,[\w.]+)+')


class UserError(ValueError):
  """An error that the user can correct; commands print its message alone."""


class ConfigError(UserError):
  """A wrong setting; the message has its dotted name and what is allowed."""


def parse_arg(
  arg: str, **options: tuple[str, tuple[str, ...]]
) -> types.SimpleNamespace:
  """Reads what follows the colon of `--config file.py:7b,preset=masked`.

  Args:
    arg: comma-separated `name=value`; a bare first value is for the first name.
    **options: name -> (default, allowed values).
  """
  values = {name: default for name, (default, _) in options.items()}
  for index, part in enumerate(p for p in (arg or '').split(',') if p):
    name, equals, value = part.partition('=')
    if not equals and index == 0:
      name, value = next(iter(options)), part
    elif not equals or name not in options:
      raise ConfigError(
        f'--config argument {part!r}: choose some of {", ".join(sorted(options))}'
      )
    allowed = options[name][1]
    if value not in allowed:
      choices = ', '.join(filter(None, allowed))
      raise ConfigError(f'--config argument {name}={value}: choose one of {choices}')
    values[name] = value
  return types.SimpleNamespace(**values)


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
  """Returns an editable copy of a frozen dataclass, nested or not."""
  config = ml_collections.ConfigDict()
  if hasattr(settings, 'stage'):
    config.stage = settings.stage  # names the kind of run; not a setting
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    config[field.name] = (
      to_config_dict(value) if dataclasses.is_dataclass(value) else value
    )
  return config


def from_config_dict(kind: type[T], config: Any, path: str = 'config') -> T:
  """Returns an edited copy as the frozen dataclass `kind`.

  Raises:
    ConfigError: a name, a type or a value is wrong; names the dotted field.
  """
  hints = typing.get_type_hints(kind)
  unknown = [name for name in config if name not in hints and name != 'stage']
  if unknown:
    close = difflib.get_close_matches(unknown[0], hints, 1)
    hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(hints)}'
    raise ConfigError(f'{path}.{unknown[0]}: no such field; {hint}')
  values = {
    name: _checked(hint, config[name], f'{path}.{name}')
    for name, hint in hints.items()
    if name in config
  }
  try:
    return kind(**values)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'{path}.{error}') from None


def _checked(hint: Any, value: Any, path: str) -> Any:
  """Returns a value if it is of the type that a field has; raises ConfigError."""
  if dataclasses.is_dataclass(hint):
    if dataclasses.is_dataclass(value):
      return value
    return from_config_dict(typing.cast(type, hint), value, path)
  origin = typing.get_origin(hint)
  if origin is Literal:
    allowed = typing.get_args(hint)
    if value not in allowed:
      raise ConfigError(f'{path}: choose one of {", ".join(allowed)}; got {value!r}')
    return value
  if origin is tuple:
    value = (value,) if isinstance(value, (str, int, float)) else tuple(value)
    inner = typing.get_args(hint)[0]
    # What a flag has as a,b comes as one text.
    if inner is str and len(value) == 1 and _NAMES.fullmatch(str(value[0])):
      value = tuple(value[0].split(','))
    return tuple(_checked(inner, item, f'{path}[{i}]') for i, item in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ConfigError(f'{path}: must be {hint.__name__}, got {value!r}')
  return value


def changes(old: dict, new: dict) -> list[str]:
  """Returns the fields that differ, each as `name: old -> new`."""
  return [
    f'{name}: {old.get(name)!r} -> {new.get(name)!r}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]


def flatten(settings: Any, path: str = '') -> dict[str, Any]:
  """Returns dotted name -> value, for summaries and to compare two runs."""
  flat = {}
  for field in dataclasses.fields(settings):
    value, name = getattr(settings, field.name), f'{path}{field.name}'
    if dataclasses.is_dataclass(value):
      flat |= flatten(value, f'{name}.')
    else:
      flat[name] = value
  return flat
