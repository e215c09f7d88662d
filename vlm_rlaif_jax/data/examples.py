"""Reads files of records as typed examples.

The files are those of the released data sets: a JSON list whose rows have
`conversations` and either `images` (the pictures of the frames, in order) or `video`
(one file); rows of preferences have `output_1`, `output_2` and `preference` as well.
An error names the file and the row.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from vlm_rlaif_jax.data.prompts import Turns, unmarked
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.build import UserError

T = TypeVar('T')

ROLES = {'human': 0, 'user': 0, 'gpt': 1, 'assistant': 1}


class DataError(UserError):
  """An error in a file or a row; names the file, the row and the field."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One conversation about one video (or about none)."""

  key: str  # its id; files may repeat one, so nothing is looked up by it
  video: Video | None
  turns: Turns  # (question, answer), ...; the video mark is stripped
  record: dict  # the row as it is in the file
  where: str = 'a sample'  # its file and row, for messages

  @property
  def question(self) -> str:
    """Returns the first question."""
    return self.turns[0][0]


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to the last question of a conversation; `preferred` is 0 or 1."""

  example: Example
  answers: tuple[str, str]
  preferred: int


def read_rows(path: pathlib.Path) -> list[tuple[str, Callable[[], dict]]]:
  """Returns (where, read) of each row of a JSON list of objects, or of JSON lines.

  Raises:
    DataError: the file is missing or holds no list. A row that is no object raises it
      when it is read.
  """
  if not path.is_file():
    raise DataError(f'{path}: no such file')
  try:
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.jsonl':
      lines = enumerate(text.split('\n'), 1)  # other line ends may be in a string
      rows = [(f'{path} line {i}', line) for i, line in lines if line.strip()]
      return [(where, functools.partial(_line, line, where)) for where, line in rows]
    rows = json.loads(text)
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise DataError(f'{path}: not JSON ({error})') from None
  if not isinstance(rows, list):
    raise DataError(f'{path}: must be a list of objects, got {type(rows).__name__}')
  numbered = [(f'{path} row {i}', row) for i, row in enumerate(rows)]
  return [(where, functools.partial(_object, row, where)) for where, row in numbered]


def _line(text: str, where: str) -> dict:
  try:
    return _object(json.loads(text), where)
  except json.JSONDecodeError as error:
    raise DataError(f'{where}: not JSON ({error})') from None


def _object(row: Any, where: str) -> dict:
  if not isinstance(row, dict):
    raise DataError(f'{where}: must be an object, got {type(row).__name__}')
  return row


def examples(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], Example]]]:
  """Yields (where, parse) of each row, so that the caller decides on bad rows."""
  for index, (where, row) in enumerate(read_rows(path)):
    yield where, functools.partial(_parse, parse_example, row, where, index)


def pairs(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], Pair]]]:
  """Yields (where, parse) of each row of a file of preferences."""
  for index, (where, row) in enumerate(read_rows(path)):
    yield where, functools.partial(_parse, parse_pair, row, where, index)


def _parse(
  parse: Callable[[dict, str, int], T], row: Callable[[], dict], where: str, index: int
) -> T:
  """Returns a row, read and parsed."""
  return parse(row(), where, index)


def messages_of(row: dict, where: str) -> list:
  """Returns the messages of a row, also of a list that holds one conversation."""
  messages = _field(row, 'conversations', list, where)
  return messages[0] if messages and isinstance(messages[0], list) else messages


def parse_example(row: dict, where: str, index: int = 0) -> Example:
  """Returns a row as an example; the last answer may be empty."""
  messages = messages_of(row, where)
  turns: list[tuple[str, str]] = []
  question = None
  for number, message in enumerate(messages):
    at = f'{where}: conversations[{number}]'
    if not isinstance(message, dict):
      raise DataError(f'{at}: must be an object, got {message!r}')
    role = message.get('from', message.get('role'))
    if not isinstance(role, str) or role not in ROLES:
      raise DataError(
        f"{at}: from must be 'human' or 'gpt', got {role!r}"
        if role is not None
        else f"{at}: missing key 'from'"
      )
    text = _field(message, 'value', str, at)
    if ROLES[role] != number % 2:
      raise DataError(f'{at}: human and gpt must take turns, human first')
    if ROLES[role] == 0:
      question = unmarked(text)
    else:
      assert question is not None
      turns.append((question, text.strip()))
  if len(messages) % 2:
    turns.append((question or '', ''))
  if not turns:
    raise DataError(f'{where}: conversations is empty')
  key = str(row.get('id', row.get('uid', index)))
  return Example(key, video_of(row, where), tuple(turns), row, where)


def parse_pair(row: dict, where: str, index: int = 0) -> Pair:
  """Returns a row of preferences as two answers to one question."""
  example = parse_example(row, where, index)
  answers = []
  for name in ('output_1', 'output_2'):
    output = _field(row, name, dict, where)
    answers.append(_field(output, 'value', str, f'{where}: {name}').strip())
  preference = _field(row, 'preference', int, where)
  if preference not in (1, 2):
    raise DataError(f'{where}: preference must be 1 or 2, got {preference!r}')
  if 'narrative' in row:
    _field(row, 'narrative', str, where)
  return Pair(example, (answers[0], answers[1]), preference - 1)


def check_distinct(field: str, values: Iterable[tuple[str, str]]) -> None:
  """Raises DataError where (value, where) pairs repeat a value that joins files."""
  first: dict[str, str] = {}
  for value, where in values:
    if value in first:
      raise DataError(f'{where}: {field} {value!r} is also that of {first[value]}')
    first[value] = where


def check_clip(item: Example, frames: int) -> Example:
  """Returns the example; raises DataError for a clip outside of the sampled frames."""
  if item.video is not None and item.video.clip is not None:
    first, stop = item.video.clip
    if stop > frames:
      raise DataError(
        f'{item.where}: clip must be within [0, {frames}], the frames that are sampled '
        f'(data.frames={frames}), got [{first}, {stop}]'
      )
  return item


def video_of(row: dict, where: str) -> Video | None:
  """Returns the video that a row names, or None."""
  clip = row.get('clip')
  if clip is not None:
    if not (
      isinstance(clip, list)
      and len(clip) == 2
      and all(isinstance(i, int) for i in clip)
      and 0 <= clip[0] < clip[1]
    ):
      raise DataError(f'{where}: clip must be [first, stop] frames, got {clip!r}')
    clip = (clip[0], clip[1])
  if 'video' in row:
    return Video((_field(row, 'video', str, where),), clip)
  paths = row.get('images', row.get('image'))
  if paths is None:
    return None
  paths = [paths] if isinstance(paths, str) else paths
  if (
    not isinstance(paths, list)
    or not paths
    or not all(isinstance(path, str) for path in paths)
  ):
    raise DataError(f'{where}: images must be a list of paths, got {paths!r}')
  return Video(tuple(paths), clip)


def _field(row: dict, name: str, kind: type, where: str) -> Any:
  """Returns a field of a row; raises DataError if it is missing or of another type."""
  if name not in row:
    raise DataError(f'{where}: missing key {name!r}')
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise DataError(
      f'{where}: {name} must be a {kind.__name__}, got {type(row[name]).__name__}'
    )
  return row[name]


@dataclasses.dataclass
class Skipped:
  """Bad samples that a run left out, for its summary."""

  policy: str  # 'stop' or 'skip'
  reasons: list[str] = dataclasses.field(default_factory=list)

  def attempt(self, parse: Callable[[], T]) -> T | None:
    """Returns the result of `parse`, or None if it fails and the policy is to skip."""
    try:
      return parse()
    except ValueError as error:
      if self.policy == 'stop':
        raise DataError(
          f'{error} (data.on_bad_sample=skip leaves such samples out)'
        ) from None
      self.reasons.append(str(error))
      return None


def is_held_out(video: Video | None, share: float, split: str = '') -> bool:
  """Returns whether a video is in the held-out share, by its path alone.

  Args:
    split: names another share, independent of that of ''.
  """
  path = pathlib.PurePath(video.paths[0]) if video else pathlib.PurePath()
  name = str(path if video is None or video.is_file else path.parent)
  digest = hashlib.sha256((split + name).encode()).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64
