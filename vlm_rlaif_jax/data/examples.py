"""Reads files of records as typed examples.

The files are those of the released data sets: a JSON list whose rows have
`conversations` and either `images` (the pictures of the frames, in order) or `video`
(one file); rows of preferences have `output_1`, `output_2` and `preference` as well.
What the fields of a row say is compared (`fields`), and an error names file and row.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

from vlm_rlaif_jax.data import fields, unread_fields
from vlm_rlaif_jax.data.fields import required
from vlm_rlaif_jax.data.prompts import Turns, unmarked
from vlm_rlaif_jax.data.rows import CONVERSATION, DataError, read_rows
from vlm_rlaif_jax.data.video import Video

T = TypeVar('T')

ROLES = {'human': 0, 'user': 0, 'gpt': 1, 'assistant': 1}


@dataclasses.dataclass(frozen=True)
class Example:
  """One conversation about one video (or about none)."""

  key: str  # its id; files may repeat one, so nothing is looked up by it
  video: Video | None
  turns: Turns  # (question, answer), ...; the video mark is stripped
  record: dict  # the row as it is in the file
  where: str = 'a sample'  # its file and row, for messages
  held_out: bool = False  # whether its video is in the share that is held out
  place: str = ''  # the name of its video, the same of all copies

  @property
  def question(self) -> str:
    """Returns the first question."""
    return self.turns[0][0]


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to the last question of a conversation; `preferred` is 0 or 1.

  Attributes:
    stopped: whether each answer ends, and was not cut at a length limit.
  """

  example: Example
  answers: tuple[str, str]
  preferred: int
  stopped: tuple[bool, bool] = (True, True)


def examples(
  path: pathlib.Path, *, answered: bool = False, ignored: Collection[str] = ()
) -> Iterator[tuple[str, Callable[[], Example]]]:
  """Yields (where, parse) of each row, so that the caller decides on bad rows."""
  yield from parse_rows(read_rows(path), answered=answered, ignored=ignored)


def parse_rows(
  rows: Iterable[tuple[str, Callable[[], dict]]],
  *,
  answered: bool = False,
  ignored: Collection[str] = (),
) -> Iterator[tuple[str, Callable[[], Example]]]:
  """Yields (where, parse) of each row of `read_rows`.

  Args:
    answered: whether a question without an answer is an error.
    ignored: `data.ignore_fields`.
  """
  parse = functools.partial(parse_example, answered=answered, ignored=ignored)
  for index, (where, row) in enumerate(rows):
    yield where, functools.partial(_parse, parse, row, where, index)


def pairs(
  path: pathlib.Path, ignored: Collection[str] = ()
) -> Iterator[tuple[str, Callable[[], Pair]]]:
  """Yields (where, parse) of each row of a file of preferences.

  Raises:
    DataError: it counts answers from 0. Its rows of 0 alone would be bad ones, and left
      out, and in all others the first answer would be preferred.
  """
  parse = functools.partial(parse_pair, ignored=ignored)
  rows = read_rows(path)
  first: dict[Any, str] = {}
  for where, row in rows:
    with contextlib.suppress(DataError):
      preference = row().get('preference')
      if type(preference) in (int, float):
        first.setdefault(preference, where)
  if 0 in first and 1 in first and 2 not in first:
    raise DataError(
      f'{first[0]}: preference is 0 here, 1 in others and 2 nowhere; expected 1 or 2, '
      'the number of the better answer: add 1 to each'
    )
  for index, (where, row) in enumerate(rows):
    yield where, functools.partial(_parse, parse, row, where, index)


def _parse(
  parse: Callable[[dict, str, int], T], row: Callable[[], dict], where: str, index: int
) -> T:
  """Returns a row, read and parsed."""
  return parse(row(), where, index)


def messages_of(row: dict, where: str) -> list:
  """Returns the messages of a row, also of a list that holds one conversation."""
  row = fields.present(row)
  names = [name for name in CONVERSATION if name in row]
  if len(names) > 1:
    raise DataError(f'{where}: {" and ".join(names)} both hold messages; leave one out')
  messages = required(row, (*names, CONVERSATION[0])[0], list, where)
  if not messages or not isinstance(messages[0], list):
    return messages
  if len(messages) > 1:
    raise DataError(
      f'{where}: {names[0]} holds {len(messages)} conversations; write a row for each'
    )
  return messages[0]


def parse_example(
  row: dict,
  where: str,
  index: int = 0,
  *,
  answered: bool = False,
  ignored: Collection[str] = (),
) -> Example:
  """Returns a row as an example; the last answer may be empty.

  Args:
    index: the key of a row that has none.
    answered: whether a question without an answer is an error.
    ignored: `data.ignore_fields`.
  """
  messages = messages_of(row, where)
  video = fields.video_of(row, where)
  turns: list[tuple[str, str]] = []
  questions: list[tuple[str, str]] = []
  for number, message in enumerate(messages):
    at = f'{where}: conversations[{number}]'
    role, text = _message(message, at)
    unread_fields.check_unread(message, fields.MESSAGE, video, at, ignored)
    if ROLES[role] != number % 2:
      raise DataError(f'{at}: human and gpt must take turns, human first')
    fields.check_text(text, at, marks=ROLES[role] == 0)
    fields.check_special(text, at)
    if ROLES[role] == 0:
      questions.append((at, text))
      if fields.is_blank(unmarked(text)) and (number or not video):
        raise DataError(f'{at}: the question is blank')
      continue
    if answered and fields.is_blank(text):
      raise DataError(f'{at}: the answer is blank, and answers are what is learned')
    turns.append((unmarked(questions[-1][1]), text.strip()))
  if len(messages) % 2:
    at, question = questions[-1]
    if answered:
      raise DataError(f'{at}: a question without an answer, and answers are learned')
    turns.append((unmarked(question), ''))
  if not turns:
    raise DataError(f'{where}: conversations is empty')
  fields.check_marks(questions, row, where)
  unread_fields.check_unread(row, fields.ROW, video, where, ignored)
  given = fields.present(row)
  key = str(given.get('id', given.get('uid', index)))
  fields.check_text(key, f'{where}: id')
  return Example(key, video, tuple(turns), row, where)


def _message(message: Any, at: str) -> tuple[str, str]:
  """Returns the role and the text of a message."""
  if not isinstance(message, dict):
    raise DataError(f'{at}: must be an object, got {message!r}')
  message = fields.present(message)
  values = {}
  for first, second in (('from', 'role'), ('value', 'content')):
    named = {name: message[name] for name in (first, second) if name in message}
    if len(named) > 1 and named[first] != named[second]:
      raise DataError(f'{at}: {first} and {second} say different things; leave one out')
    values[first] = next(iter(named.values()), None)
  role = values['from']
  if not isinstance(role, str) or role not in ROLES:
    raise DataError(
      f"{at}: from must be 'human' or 'gpt', got {role!r}"
      if role is not None
      else f"{at}: missing key 'from'"
    )
  if values['value'] is None:
    raise DataError(f"{at}: missing key 'value'")
  return role, required(values, 'value', str, at)


def parse_pair(
  row: dict, where: str, index: int = 0, *, ignored: Collection[str] = ()
) -> Pair:
  """Returns a row of preferences as two answers to one question."""
  example = parse_example(row, where, index, ignored=ignored)
  given = fields.present(row)
  outputs = [_output(given, name, where) for name in ('output_1', 'output_2')]
  preference = given.get('preference')
  if isinstance(preference, float) and preference.is_integer():
    given['preference'] = int(preference)  # what a table with nulls makes of an integer
  preference = required(given, 'preference', int, where)
  if preference not in (1, 2):
    raise DataError(f'{where}: preference must be 1 or 2, got {preference!r}')
  if 'narrative' in given:
    fields.check_text(required(given, 'narrative', str, where), f'{where}: narrative')
  (first, first_stopped), (second, second_stopped) = outputs
  return Pair(example, (first, second), preference - 1, (first_stopped, second_stopped))


def _output(row: dict, name: str, where: str) -> tuple[str, bool]:
  """Returns an answer of a pair, and whether it ends.

  A blank one is an answer only where `stopped` says that a model ended it at once.
  """
  output = fields.present(required(row, name, dict, where))
  text = required(output, 'value', str, f'{where}: {name}').strip()
  fields.check_text(text, f'{where}: {name}', marks=False)
  if 'stopped' not in output:  # else a model gave it, token by token
    fields.check_special(text, f'{where}: {name}')
  stopped = output.get('stopped', True)
  if not isinstance(stopped, bool):
    raise DataError(f'{where}: {name}: stopped must be true or false, got {stopped!r}')
  if fields.is_blank(text) and 'stopped' not in output:
    raise DataError(
      f'{where}: {name}: the answer is blank; if a model gave it, add "stopped": true'
    )
  return text, stopped


def check_distinct(field: str, values: Iterable[tuple[str, str]]) -> None:
  """Raises DataError where (value, where) pairs repeat a value that joins files."""
  first: dict[str, str] = {}
  for value, where in values:
    if value in first:
      raise DataError(f'{where}: {field} {value!r} is also that of {first[value]}')
    first[value] = where


def check_clip(video: Video | None, frames: int, where: str) -> None:
  """Raises DataError for a clip outside of the sampled frames."""
  if video is not None and video.clip is not None and video.clip[1] > frames:
    raise DataError(
      f'{where}: clip must be within [0, {frames}], the frames that are sampled '
      f'(data.frames={frames}), got {list(video.clip)}'
    )


@dataclasses.dataclass
class Skipped:
  """What a run left out of its files, for its summary and its log.

  Attributes:
    policy: 'stop' or 'skip', what a bad sample does.
    reasons: why each bad sample was left out.
    files: by file, the rows that were read, those held out and those left out.
    say: prints a line.
  """

  policy: str
  reasons: list[str] = dataclasses.field(default_factory=list)
  files: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  say: Callable[[str], None] = lambda text: None

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

  def report_split(
    self, path: pathlib.Path, train: int, held_out: int, unit: str
  ) -> None:
    """Says and keeps how the samples of a file were divided."""
    self.files.setdefault(path.name, {}).update(held_out=held_out)
    bad = self.files[path.name].get('bad')
    left_out = f'; {bad} left out' if bad else ''
    self.say(
      f'  {path.name}: {train} {unit} to train on, {held_out} held out{left_out}'
    )
