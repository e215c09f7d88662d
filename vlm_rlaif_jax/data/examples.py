"""From files of records to typed examples.

The files are those of the released data sets: a JSON list whose rows have
`conversations` and either `images` (the pictures of the frames, in order) or `video`
(one file); rows of preferences have `output_1`, `output_2` and `preference` as well.
Whatever is wrong is said with the file and the row.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vlm_rlaif_jax.config.build import UserError
from vlm_rlaif_jax.data.prompts import VIDEO_MARK, Turns
from vlm_rlaif_jax.data.video import Video

T = TypeVar('T')

ROLES = {'human': 0, 'user': 0, 'gpt': 1, 'assistant': 1}


class DataError(UserError):
  """A file or a row that is not as expected; names the file, the row and the field."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One conversation about one video (or about none)."""

  key: str  # id, unique within its file
  video: Video | None
  turns: Turns  # (question, answer), ...; the video mark is stripped
  record: dict  # the row as it stands in the file

  @property
  def question(self) -> str:
    return self.turns[0][0]


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to the last question of a conversation; `preferred` is 0 or 1."""

  example: Example
  answers: tuple[str, str]
  preferred: int


def read_rows(path: pathlib.Path) -> list[dict]:
  """A JSON list of objects, or JSON lines."""
  if not path.is_file():
    raise DataError(f'{path}: no such file')
  try:
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.jsonl':
      rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
      rows = json.loads(text)
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise DataError(f'{path}: not JSON ({error})') from None
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise DataError(f'{path}: must be a list of objects')
  return rows


def examples(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], Example]]]:
  """(where, parse) of each row, so that the caller decides what a bad row does."""
  for index, row in enumerate(read_rows(path)):
    yield (
      f'{path} row {index}',
      lambda row=row, index=index: parse_example(row, f'{path} row {index}', index),
    )


def pairs(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], Pair]]]:
  for index, row in enumerate(read_rows(path)):
    yield (
      f'{path} row {index}',
      lambda row=row, index=index: parse_pair(row, f'{path} row {index}', index),
    )


def parse_example(row: dict, where: str, index: int = 0) -> Example:
  """One row -> an example; the last answer may be empty."""
  messages = _field(row, 'conversations', list, where)
  if messages and isinstance(messages[0], list):  # a list that holds one conversation
    messages = messages[0]
  turns: list[tuple[str, str]] = []
  question = None
  for number, message in enumerate(messages):
    at = f'{where}: conversations[{number}]'
    if not isinstance(message, dict):
      raise DataError(f'{at}: must be an object, got {message!r}')
    role = message.get('from', message.get('role'))
    if role not in ROLES:
      raise DataError(
        f"{at}: from must be 'human' or 'gpt', got {role!r}"
        if role is not None
        else f"{at}: missing key 'from'"
      )
    text = _field(message, 'value', str, at)
    if ROLES[role] != number % 2:
      raise DataError(f'{at}: human and gpt must take turns, human first')
    if ROLES[role] == 0:
      question = text.replace(VIDEO_MARK, '').strip()
    else:
      assert question is not None
      turns.append((question, text.strip()))
  if len(messages) % 2:
    turns.append((question or '', ''))
  if not turns:
    raise DataError(f'{where}: conversations is empty')
  key = str(row.get('id', row.get('uid', index)))
  return Example(key, _video(row, where), tuple(turns), row)


def parse_pair(row: dict, where: str, index: int = 0) -> Pair:
  example = parse_example(row, where, index)
  answers = []
  for name in ('output_1', 'output_2'):
    output = _field(row, name, dict, where)
    answers.append(_field(output, 'value', str, f'{where}: {name}').strip())
  preference = _field(row, 'preference', int, where)
  if preference not in (1, 2):
    raise DataError(f'{where}: preference must be 1 or 2, got {preference!r}')
  return Pair(example, (answers[0], answers[1]), preference - 1)


def _video(row: dict, where: str) -> Video | None:
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
  if name not in row:
    raise DataError(f'{where}: missing key {name!r}')
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise DataError(
      f'{where}: {name} must be a {kind.__name__}, got {type(row[name]).__name__}'
    )
  return row[name]


@dataclasses.dataclass
class Skipped:
  """Bad samples that a run was told to leave out; ends up in its summary."""

  policy: str  # 'stop' or 'skip'
  reasons: list[str] = dataclasses.field(default_factory=list)

  def attempt(self, parse: Callable[[], T]) -> T | None:
    """The result of `parse`, or None where it fails and the policy is to skip."""
    try:
      return parse()
    except ValueError as error:
      if self.policy == 'stop':
        raise DataError(
          f'{error} (data.on_bad_sample=skip leaves such samples out)'
        ) from None
      self.reasons.append(str(error))
      return None


def is_held_out(video: Video | None, share: float) -> bool:
  """Whether a video belongs to the held-out share: a property of its path alone."""
  path = pathlib.PurePath(video.paths[0]) if video else pathlib.PurePath()
  name = str(path if video is None or video.is_file else path.parent)
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64
