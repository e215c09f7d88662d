"""Reads files of rows: a JSON list of objects, or JSON lines, whatever the name says.

An error names the file, and the row or line.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from vlm_rlaif_jax.settings.build import UserError

LINES = ('.jsonl', '.ndjson')
CONVERSATION = ('conversations', 'messages')  # names of the list of messages

# A file says its encoding by how it starts; UTF-32 starts as UTF-16 does.
_ENCODINGS = (
  (b'\xff\xfe\x00\x00', 'utf-32'),
  (b'\x00\x00\xfe\xff', 'utf-32'),
  (b'\xff\xfe', 'utf-16'),
  (b'\xfe\xff', 'utf-16'),
  (b'\xef\xbb\xbf', 'utf-8-sig'),
)
_BINARY = (
  (b'PAR1', 'Parquet'),
  (b'ARROW1', 'Arrow'),
  (b'\x1f\x8b', 'gzip'),
  (b'PK\x03\x04', 'zip'),
  (b'\x28\xb5\x2f\xfd', 'zstandard'),
)
_EXPECTED = 'a JSON list of objects, or JSON lines'


class DataError(UserError):
  """An error in a file or a row; names the file, the row and the field."""


class _Repeated(dict):
  """An object in which a key is there twice, so that it is not clear what it says."""

  key = ''


def read_rows(path: pathlib.Path) -> list[tuple[str, Callable[[], dict]]]:
  """Returns (where, read) of each row of a JSON list of objects, or of JSON lines.

  Raises:
    DataError: the file is missing or holds no rows. A row that is no object raises it
      when it is read.
  """
  text = read_text(path)
  named_lines = path.suffix.lower() in LINES
  if named_lines and not text.lstrip().startswith('['):
    return _lines(path, text)
  try:
    content = _loads(text)
  except (json.JSONDecodeError, RecursionError) as error:
    if named_lines or _starts_with_an_object(text):
      return _lines(path, text)
    raise DataError(f'{path}: not JSON ({error}); expected {_EXPECTED}') from None
  if isinstance(content, dict) and any(name in content for name in CONVERSATION):
    content = [content]  # the only one of its lines
  if not isinstance(content, list):
    lists = [name for name, value in _items(content) if isinstance(value, list)]
    hint = f'; write what is in {lists[0]!r} to a file of its own' if lists else ''
    raise DataError(
      f'{path}: must be a list of objects, got {type(content).__name__}{hint}'
    )
  numbered = [(f'{path} row {i}', row) for i, row in enumerate(content)]
  return [(where, functools.partial(_object, row, where)) for where, row in numbered]


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns a JSON file that is one object.

  Raises:
    DataError: it is missing, is none, or has a key twice, at any depth.
  """
  text = read_text(path, 'a JSON object')
  try:
    return _object(_loads(text), str(path))
  except (json.JSONDecodeError, RecursionError) as error:
    raise DataError(f'{path}: not JSON ({error})') from None


def read_lines(path: pathlib.Path, expected: str) -> list[tuple[str, str]]:
  """Returns (where, line) of each line of a text file that is not blank, stripped.

  Args:
    expected: what the lines are, in errors.
  """
  lines = enumerate(re.split(r'\r\n|\n|\r', read_text(path, expected)), 1)
  return [(f'{path} line {i}', line.strip()) for i, line in lines if line.strip()]


def read_text(path: pathlib.Path, expected: str = _EXPECTED) -> str:
  """Returns the text of a file in the encoding that its first bytes name.

  Args:
    expected: what the file contains, in errors.
  """
  if path.is_dir():
    raise DataError(f'{path}: a folder; expected a file, {expected}')
  if not path.is_file():
    raise DataError(f'{path}: no such file')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise DataError(f'{path}: cannot be read ({error.strerror})') from None
  for start, kind in _BINARY:
    if content.startswith(start):
      raise DataError(f'{path}: a {kind} file; write its rows as {expected}')
  encoding = next((e for start, e in _ENCODINGS if content.startswith(start)), 'utf-8')
  if encoding == 'utf-8' and b'\0' in content[:4]:
    raise DataError(f'{path}: UTF-16 or UTF-32 without a byte order mark; use UTF-8')
  try:
    text = content.decode(encoding)
  except UnicodeDecodeError as error:
    raise DataError(
      f'{path}: not {encoding.upper()} (byte {error.start}); save it as UTF-8'
    ) from None
  if not text.strip():
    raise DataError(f'{path}: empty; expected {expected}')
  return text


def _lines(path: pathlib.Path, text: str) -> list[tuple[str, Callable[[], dict]]]:
  """Returns (where, read) of each line that is not blank."""
  # No other line ends: the rest of what Python splits at may be inside a string.
  lines = enumerate(re.split(r'\r\n|\n|\r', text), 1)
  rows = [(f'{path} line {i}', line.lstrip('\ufeff')) for i, line in lines]
  return [
    (where, functools.cache(functools.partial(_line, line, where)))
    for where, line in rows
    if line.strip()
  ]


def _starts_with_an_object(text: str) -> bool:
  """Returns whether the first line that is not blank is an object by itself."""
  first = re.split(r'\r\n|\n|\r', text.strip(), maxsplit=1)[0]
  try:
    return isinstance(_loads(first), dict)
  except (json.JSONDecodeError, RecursionError):
    return False


def _loads(text: str) -> Any:
  return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict:
  """Returns an object; one with a repeated key says so."""
  content = dict(pairs)
  if len(content) == len(pairs):
    return content
  names = [name for name, _ in pairs]
  repeated = _Repeated(content)
  repeated.key = next(name for name in names if names.count(name) > 1)
  return repeated


def _line(text: str, where: str) -> dict:
  try:
    return _object(_loads(text), where)
  except (json.JSONDecodeError, RecursionError) as error:
    raise DataError(f'{where}: not JSON ({error})') from None


def _object(row: Any, where: str) -> dict:
  if not isinstance(row, dict):
    raise DataError(f'{where}: must be an object, got {type(row).__name__}')
  key = _repeated_key(row)
  if key is not None:
    raise DataError(f'{where}: the key {key!r} is there twice; leave one of them')
  return row


def _repeated_key(content: Any) -> str | None:
  """Returns a key that an object has twice, at any depth; None if there is none."""
  if isinstance(content, _Repeated):
    return content.key
  inner = content if isinstance(content, list) else [v for _, v in _items(content)]
  keys = (_repeated_key(value) for value in inner if isinstance(value, dict | list))
  return next((key for key in keys if key is not None), None)


def _items(content: Any) -> list[tuple[str, Any]]:
  return list(content.items()) if isinstance(content, dict) else []
