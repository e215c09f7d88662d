"""Numbers of a run: JSON lines, TensorBoard, and the check that they are finite."""

import json
import math
import pathlib

import jax

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.build import UserError


class NonFiniteError(UserError):
  """A loss, norm or statistic that is NaN or infinite; names it and the step."""


class Metrics:
  """Appends rows to `metrics.jsonl` and, where asked, to TensorBoard event files.

  A resumed run drops the rows that it is about to compute again.
  """

  def __init__(self, folder: pathlib.Path, tensorboard: bool, resumed_at: int = 0):
    self.path = folder / 'metrics.jsonl'
    folder.mkdir(parents=True, exist_ok=True)
    rewind(self.path, resumed_at)
    self.writer = None
    if tensorboard and hosts.is_first():
      import tensorboardX

      self.writer = tensorboardX.SummaryWriter(
        str(folder / 'tensorboard'), purge_step=resumed_at + 1 if resumed_at else None
      )

  def write(self, step: int, values: dict) -> dict[str, float]:
    """Writes one row; values may be device scalars. Raises on what is not finite."""
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
    if self.writer is not None:
      self.writer.close()


def check_finite(step: int, row: dict[str, float]) -> None:
  for name, value in row.items():
    if not math.isfinite(value):
      raise NonFiniteError(
        f'{name} is {value} at step {step}; the last checkpoint is before it'
      )


def read(path: pathlib.Path) -> list[dict]:
  """The rows written so far; a last line cut short by a kill is left out."""
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return rows


def rewind(path: pathlib.Path, step: int, field: str = 'step') -> None:
  """Drops the rows that a run resumed after `step` is about to write again."""
  if hosts.is_first():
    kept = [row for row in read(path) if row[field] <= step] if step else []
    hosts.write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))


class Compilations:
  """Counts programs compiled from here on; a steady run compiles none."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **kwargs) -> None:
    del duration_secs, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      self.count += 1

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)
