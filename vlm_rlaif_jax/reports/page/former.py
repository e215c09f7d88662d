"""Leaves out what judges said of answers that a run no longer has."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.evals.judges import files
from vlm_rlaif_jax.reports.page.run_files import RunFiles


def current(
  run: RunFiles, path: pathlib.Path, models: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns the rows of a file of verdicts that are on the answers beside it.

  Those of a judge that was not asked again after a model was trained anew are on former
  answers; a line says so. Rows of before they said what they are on are taken as they
  are.

  Args:
    models: whose answers a row is on; of several it has a digest each.
  """
  there = [_digests(path.with_name(f'answers_{name}.jsonl')) for name in models]
  rows = run.read_rows(path) if path.is_file() else []
  if None in there:
    return rows

  def is_current(row: Mapping[str, Any]) -> bool:
    own = [one.get(str(row.get('key'))) for one in there if one is not None]
    judged = row.get('answers')
    return judged is None or judged == (own if isinstance(judged, list) else own[0])

  left = [row for row in rows if is_current(row)]
  if len(left) < len(rows):
    run.say(
      f'{path}: {len(rows) - len(left)} of {len(rows)} verdicts are on former answers, '
      'and left out'
    )
  return left


def _digests(path: pathlib.Path) -> dict[str, str] | None:
  """Returns the digest of each answer in a file by its key; None without the file."""
  return _of_file(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(maxsize=64)  # several judges read the same answers
def _of_file(path: pathlib.Path, changed: int) -> dict[str, str]:
  """Returns the digests of the answers in a file, as it was when last changed."""
  del changed
  reader = RunFiles(path.parent, '', [], {}, {}, {})  # samples say what is broken
  return {
    str(row.get('key')): files.digest(row['answers'])
    for row in reader.read_rows(path, ('key', 'answers'))
    if isinstance(row.get('answers'), list)
  }


def is_current(run: RunFiles, benchmark: str, entry: Mapping[str, Any]) -> bool:
  """Returns whether what another judge says is of the answers that the run has now.

  Args:
    entry: of a summary of this judge, or of the agreement of two.
  """
  entries = run.summaries.get('eval', {}).get('benchmarks') or {}
  now, then = (one.get('answers') or {} for one in (entries.get(benchmark, {}), entry))
  return all(now.get(model, answers) == answers for model, answers in then.items())
