"""Writes metrics as JSON lines and to TensorBoard; checks that they are finite."""

import json
import math
import pathlib
import shutil
from typing import Any

import jax

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.build import UserError


class NonFiniteError(UserError):
  """A metric that is NaN or infinite; the message names it and the step."""


class Metrics:
  """Appends rows to `metrics.jsonl` and, if requested, to TensorBoard event files.

  Args:
    folder: of the stage.
    tensorboard: whether to write event files, too.
    resumed_at: steps of the run so far; rows of later ones are dropped, since they are
      computed once more.
  """

  def __init__(self, folder: pathlib.Path, tensorboard: bool, resumed_at: int = 0):
    self.path = folder / 'metrics.jsonl'
    folder.mkdir(parents=True, exist_ok=True)
    rewind(self.path, resumed_at)
    self.writer = None
    events = folder / 'tensorboard'
    if not resumed_at and hosts.is_first():
      shutil.rmtree(events, ignore_errors=True)  # of a run before a restart
    if tensorboard and hosts.is_first():
      import tensorboardX

      self.writer = tensorboardX.SummaryWriter(
        str(events), purge_step=resumed_at + 1 if resumed_at else None
      )

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
      if self.writer is not None:
        for name, value in row.items():
          self.writer.add_scalar(name, value, step)
    return row

  def close(self) -> None:
    """Closes the event file."""
    if self.writer is not None:
      self.writer.close()


def check_finite(step: int, row: dict[str, float]) -> None:
  """Raises NonFiniteError for the first value that is NaN or infinite."""
  for name, value in row.items():
    if not math.isfinite(value):
      raise NonFiniteError(
        f'{name} is {value} at step {step}; the last checkpoint is before it'
      )


def read(path: pathlib.Path) -> list[dict]:
  """Returns the rows of a file without a last line that a kill cut short."""
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return rows


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
