"""Answers of a model on disk: a row an item, appended as soon as it is there.

answers_<model>.jsonl          of the items of the run, and of no others
former_answers_<model>.jsonl   of other settings, of other splits, of files as they were

A run that is killed loses at most the row that is being written. What it left is used
again only where everything that an answer depends on is the same: the identity of the
run, the prompts and the video of the item, and the contents of the files. What else is
in a row, as the reference, is that of the item when the file was last opened.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks.benchmark import row_of
from vlm_rlaif_jax.evals.records import Item

ITEM = ('prompts', 'paths', 'clip')  # fields of a row that an answer depends on

Contents = Callable[[Video], str]
"""Returns what stands for the files that an answer about a video depends on."""


def identity_of(values: Mapping[str, Any]) -> str:
  """Returns what stands for everything that answers depend on, beside the item."""
  text = json.dumps(values, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a file that was appended to; a cut last line is left out.

  Raises:
    DataError: another line is no row.
  """
  lines = path.read_bytes().split(b'\n') if path.is_file() else []
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or not isinstance(row.get('key'), str):
        raise ValueError('no object with a key')
    except ValueError as error:
      if number == len(lines):  # no line end after it: it was being written
        break
      raise DataError(
        f'{path} line {number}: no row with a key ({error}); move the file away, and '
        'what was in it is computed again'
      ) from None
    rows.append(row)
  return rows


def repair(path: pathlib.Path) -> None:
  """Drops the last line of a file of rows, if it is there, where a kill cut it."""
  if path.is_file():
    content = path.read_bytes()
    end = content.rfind(b'\n') + 1
    if end < len(content):
      os.truncate(path, end)


def _unknown(video: Video) -> str:
  """Returns that nothing is known of the contents of files."""
  del video
  return ''


class AnswerFile:
  """The answers of one model to the items of one benchmark.

  The first host writes; all read what is there when it is opened. Rows that are no
  answers to these items wait in `former_<name>` until they are.

  Args:
    identity: of `identity_of`.
    contents: '' where that is not known. A row of before they were kept has none, and
      is taken for one of the same contents.
    reuses: False: rows that are there for these items are dropped.
  """

  def __init__(
    self,
    path: pathlib.Path,
    identity: str,
    items: Sequence[Item],
    contents: Contents = _unknown,
    reuses: bool = True,
  ):
    self.path, self.identity, self.contents = path, identity, contents
    self._reuses = reuses
    hosts.together(lambda: self._sort(items) if hosts.is_first() else None)
    hosts.barrier(f'answers {path}')
    self.rows = {row['key']: row for row in read_rows(path)}
    hosts.agree({f'answers in {path}': lambda: sorted(self.rows)})

  def _sort(self, items: Sequence[Item]) -> None:
    """Divides the rows of both files into those of the items and others."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    repair(self.path)
    former = self.path.with_name(f'former_{self.path.name}')
    rows, others = read_rows(self.path), read_rows(former)
    by_key = {item.key: item for item in items}
    used: dict[str, dict[str, Any]] = {}
    left: dict[str, dict[str, Any]] = {}
    for row in (*others, *rows):
      item = by_key.get(row['key'])
      if item is not None and self._is_answer(row, item):
        used[row['key']] = _with_item(row, item)
      else:
        left[json.dumps(row, sort_keys=True)] = row
    used = used if self._reuses else {}
    if list(used.values()) == rows and list(left.values()) == others:
      return
    # No row is in neither file at any time, so that a kill loses none.
    _write(former, (*others, *rows))
    _write(self.path, used.values())
    _write(former, left.values())

  def _is_answer(self, row: Mapping[str, Any], item: Item) -> bool:
    """Returns whether a row is what this run would answer."""
    contents = self.contents(item.video)
    return (
      row.get('run') == self.identity
      and _dependencies(row) == _dependencies(row_of(item))
      and row.get('contents', contents) == contents
    )

  def pending(self, items: Sequence[Item]) -> list[int]:
    """Returns the numbers of the items without an answer."""
    return [number for number, item in enumerate(items) if item.key not in self.rows]

  def append(
    self,
    item: Item,
    answers: Sequence[str],
    ended: Sequence[bool],
    options: Sequence[float] | None = None,
  ) -> None:
    """Keeps the answers to an item, on disk before it returns.

    Args:
      ended: whether each ends by itself, and not at the limit of its length.
      options: log-probabilities of the letters.
    """
    row = {**row_of(item), 'answers': list(answers), 'ended': list(ended)}
    row['run'] = self.identity
    if contents := self.contents(item.video):
      row['contents'] = contents
    if options is not None:
      row['options'] = [float(value) for value in options]
    self.rows[item.key] = row
    if hosts.is_first():
      with self.path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')
        file.flush()
        os.fsync(file.fileno())

  def in_order(self, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Returns the row of each item."""
    return [self.rows[item.key] for item in items]


def _dependencies(row: Mapping[str, Any]) -> list:
  """Returns what of an item its answers depend on."""
  return [row.get(name) for name in ITEM]


def _with_item(row: Mapping[str, Any], item: Item) -> dict[str, Any]:
  """Returns a row with what the item is now, as JSON has it: its reference, say."""
  return {**row, **json.loads(json.dumps(row_of(item)))}


def _write(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes rows to a file that is complete or not there; without any, removes it."""
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  if text:
    hosts.write_atomically(path, text)
  else:
    path.unlink(missing_ok=True)
