"""Writes metrics as JSON lines and to sinks; checks that they are finite."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import LogConfig
from vlm_rlaif_jax.train import sinks


class NonFiniteError(UserError):
  """A metric that is NaN or infinite; the message names it and the step."""


class Metrics:
  """Appends rows to `metrics.jsonl` and, if requested, to TensorBoard and W&B.

  Args:
    folder: of the stage.
    log: where rows go, too.
    resumed_at: steps of the run so far; rows of later ones are dropped, since they are
      computed once more.
    settings: of the run, for W&B.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    log: LogConfig,
    resumed_at: int = 0,
    settings: Mapping[str, Any] | None = None,
  ):
    self.path = folder / 'metrics.jsonl'
    folder.mkdir(parents=True, exist_ok=True)
    rewind(self.path, resumed_at)
    self.sinks: list[sinks.Sink] = []
    if hosts.is_first():
      self.sinks = sinks.make(log, folder, resumed_at, settings or {})

  def write(self, step: int, values: dict) -> dict[str, float]:
    """Writes one row and returns it as floats.

    Args:
      values: numbers or scalars on a device.

    Raises:
      NonFiniteError: a value is NaN or infinite.
    """
    row = {name: float(value) for name, value in values.items()}
    check_finite(step, row)
    if hosts.is_first():
      with self.path.open('a') as file:
        file.write(json.dumps({'step': step, **row}) + '\n')
      for sink in self.sinks:
        sink.scalars(step, row)
    return row

  def write_media(self, step: int, media: Callable[[], sinks.Media]) -> None:
    """Writes texts, pictures and histograms, which are made only if they are read."""
    if self.sinks:
      values = media()
      for sink in self.sinks:
        sink.media(step, values)

  def flush(self) -> None:
    """Waits until sinks have on disk what they were given.

    A run that is killed goes on from its last checkpoint, and writes no row of before
    it once more.
    """
    for sink in self.sinks:
      sink.flush()

  def close(self) -> None:
    """Closes the files of all sinks."""
    for sink in self.sinks:
      sink.close()


def check_finite(step: int, row: dict[str, float]) -> None:
  """Raises NonFiniteError for the first value that is NaN or infinite."""
  for name, value in row.items():
    if not math.isfinite(value):
      raise NonFiniteError(
        f'{name} is {value} at step {step}; the last checkpoint is before it'
      )


def read(path: pathlib.Path) -> list[dict]:
  """Returns the rows of a file without lines that are damaged, as by a kill."""
  rows = []
  if path.exists():
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
      with contextlib.suppress(ValueError):
        rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]


def rewind(path: pathlib.Path, step: int, field: str = 'step') -> None:
  """Drops the rows after a step, which a resumed run writes once more."""
  if hosts.is_first():
    earlier = [row for row in read(path) if row[field] <= step] if step else []
    hosts.write_atomically(path, ''.join(json.dumps(row) + '\n' for row in earlier))


class Compilations:
  """Counts the programs that are compiled while it is open; a steady run has none."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      self.count += 1

  def close(self) -> None:
    """Ends the count."""
    jax.monitoring.unregister_event_duration_listener(self._listen)
