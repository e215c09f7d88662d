"""Answers of a model on disk: a row an item, appended as soon as it is there.

A run that is killed loses at most the row that is being written. What it left is used
again only where everything that an answer depends on is the same: the identity of the
run, and the prompts and the video of the item.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.benchmarks.benchmark import row_of
from vlm_rlaif_jax.evals.records import Item

ITEM = ('prompts', 'paths', 'clip')  # fields of a row that an answer depends on


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


class AnswerFile:
  """The answers of one model to the items of one benchmark.

  The first host writes; all read what is there when it is opened. Rows of another
  identity are moved to `former_<name>`, in place of those that were there.

  Args:
    identity: of `identity_of`.
  """

  def __init__(self, path: pathlib.Path, identity: str, items: Sequence[Item]):
    self.path, self.identity = path, identity
    self.rows: dict[str, dict[str, Any]] = {}
    if hosts.is_first():
      path.parent.mkdir(parents=True, exist_ok=True)
      self._repair()
    hosts.barrier(f'answers {path}')
    expected = {item.key: _dependencies(row_of(item)) for item in items}
    for row in read_rows(path):
      if row['key'] in expected and _dependencies(row) == expected[row['key']]:
        self.rows[row['key']] = row
    hosts.agree({f'answers in {path}': lambda: sorted(self.rows)})

  def _repair(self) -> None:
    """Moves rows of another identity away, and drops a cut last line."""
    rows = read_rows(self.path)
    if any(row.get('run') != self.identity for row in rows):
      self.path.replace(self.path.with_name(f'former_{self.path.name}'))
      rows = []
    repair(self.path)

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
