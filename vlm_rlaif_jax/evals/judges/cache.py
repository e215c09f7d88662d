"""Verdicts that need not be requested again: JSON lines that are only appended to.

A line is one verdict, by a key that names the judge, the wording of the request and the
content of the case. A line that a kill cut short is dropped, and what comes next starts
on a line of its own. Several processes may share a file: each line is written at once
under a lock, and the first verdict on a case is the one that all of them use.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST, LOWEST
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.build import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
  """A verdict in the cache.

  Attributes:
    verdict: with its score as the judge gave it, before any rounding.
    version: of the judge, as it reported it; '' if it did not.
    date: on which the judge gave it, ISO.
  """

  verdict: Verdict
  version: str = ''
  date: str = ''


class VerdictCache:
  """The verdicts of a file, and those that this process adds.

  Args:
    path: of the file, which may not exist yet; None: nothing is kept.
    keep_unscored: whether a reply without a verdict that was there before counts as
      one; else it is requested again.
  """

  def __init__(self, path: pathlib.Path | None, keep_unscored: bool = True):
    self.path, self.keep_unscored = path, keep_unscored
    self._entries: dict[str, Entry] = {}
    self._own: set[str] = set()  # keys of verdicts that this process requested
    self._size = 0  # bytes of the file that are read
    self._lock = threading.Lock()
    if path is not None:
      try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open('ab').close()
      except OSError as error:
        raise UserError(
          f'{path}: the cache of verdicts cannot be written ({error.strerror})'
        ) from None
    self.refresh()

  def refresh(self) -> None:
    """Reads what other processes have added."""
    if self.path is not None:
      with self._lock, self.path.open('rb') as file:
        self._read(file)

  def get(self, key: str) -> Entry | None:
    """Returns the verdict of a key; None if it has to be requested."""
    entry = self._entries.get(key)
    if entry is None or self.keep_unscored or key in self._own:
      return entry
    return None if entry.verdict.error else entry

  def put(self, key: str, entry: Entry) -> Entry:
    """Keeps a verdict, and returns the one that counts.

    That is the one of another process, if it was first and is scored.
    """
    with self._lock:
      self._own.add(key)
      if self.path is None:
        self._entries[key] = entry
        return entry
      with self.path.open('r+b') as file, locked(file):
        self._read(file)
        earlier = self._entries.get(key)
        if earlier is not None and (entry.verdict.error or not earlier.verdict.error):
          return earlier
        line = json.dumps({'key': key, **_row(entry)}).encode()
        # One write, so that a kill leaves a whole line or the beginning of one.
        file.write((b'\n' if self._ends_inside_a_line(file) else b'') + line + b'\n')
        file.flush()
        self._entries[key] = entry
        self._size = file.tell()
        return entry

  def _read(self, file: Any) -> None:
    """Reads the whole lines that were added; the first verdict of a key stays."""
    file.seek(self._size)
    content = file.read()
    end = content.rfind(b'\n') + 1
    for line in content[:end].splitlines():
      key, entry = _parse(line)
      if entry is None:
        continue
      earlier = self._entries.get(key)
      if earlier is None or (earlier.verdict.error and not entry.verdict.error):
        self._entries[key] = entry
    self._size += end

  def _ends_inside_a_line(self, file: Any) -> bool:
    """Returns whether a line was cut, and leaves the position at the end."""
    if not file.seek(0, os.SEEK_END):
      return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b'\n'


@contextlib.contextmanager
def locked(file: Any) -> Iterator[None]:
  """Keeps other processes from writing; where a file system has no locks, it does not.

  There two processes may both request a verdict, and lines that they mix are dropped.
  """
  with contextlib.suppress(OSError):
    fcntl.flock(file, fcntl.LOCK_EX)
  try:
    yield
  finally:
    file.flush()
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_UN)


def _row(entry: Entry) -> dict[str, Any]:
  row = dataclasses.asdict(entry.verdict)
  return {**row, 'version': entry.version, 'date': entry.date}


def _parse(line: bytes) -> tuple[str, Entry | None]:
  """Returns key and verdict of a line; ('', None) of one that is cut or foreign."""
  try:
    row = json.loads(line)
    score, correct = row['score'], row['correct']
    texts = [row[name] for name in ('key', 'raw', 'error', 'version', 'date')]
  except (ValueError, KeyError, TypeError, RecursionError):
    return '', None
  is_score = isinstance(score, int | float) and not isinstance(score, bool)
  scored = is_score and LOWEST <= score <= HIGHEST
  if not all(isinstance(text, str) for text in texts) or not (
    (scored and not texts[2]) or (score is None and texts[2])
  ):
    return '', None
  if correct not in (True, False, None):
    return '', None
  key, raw, error, version, date = texts
  verdict = Verdict(None if score is None else float(score), correct, raw, error)
  return key, Entry(verdict, version, date)
