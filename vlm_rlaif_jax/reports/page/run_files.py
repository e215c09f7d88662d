"""Reads the folders of runs; what is missing or broken becomes a line, not an error."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Container, Sequence
from typing import Any

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import SIZES

STAGES = ('sft', 'label', 'reward', 'init', 'ppo', 'eval')
BROKEN = (  # what a file of another form raises while it is read
  AttributeError,
  IndexError,
  KeyError,
  OSError,
  RecursionError,
  TypeError,
  ValueError,
  ZeroDivisionError,
)


class ReportError(UserError):
  """What is to be reported on is no run."""


@dataclasses.dataclass(eq=False)
class RunFiles:
  """The files of a run.

  Attributes:
    folder: `<workdir>/<size>`.
    label: what distinguishes it from the other runs of a page.
    problems: lines about what is missing or broken.
    summaries: by stage, of those that are done.
    metrics: by stage, the rows of its metrics.
    settings: by stage, its settings by dotted name; {} where they are not recorded.
  """

  folder: pathlib.Path
  label: str
  problems: list[str]
  summaries: dict[str, dict[str, Any]]
  metrics: dict[str, list[dict[str, Any]]]
  settings: dict[str, dict[str, Any]]

  def say(self, problem: str) -> None:
    """Adds a line about what is missing or broken, once."""
    line = ' '.join(problem.split())
    if line not in self.problems:
      self.problems.append(line)

  def attempt(self, what: str, build_part: Callable[..., Any], *args: Any) -> Any:
    """Returns `build_part(*args)`; None, and a line, if files have another form."""
    try:
      return build_part(*args)
    except BROKEN as error:
      reason = str(error) if isinstance(error, UserError) else repr(error)
      self.say(f'{self.folder}: {what} is left out: {reason}')
      return None

  def read_json(self, path: pathlib.Path) -> Any:
    """Returns the contents of a file; None, and a line, if it cannot be read."""
    try:
      return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
      self.say(f'{path}: cannot be read ({error})')
      return None

  def read_rows(
    self, path: pathlib.Path, names: Container[str] | None = None
  ) -> list[dict[str, Any]]:
    """Returns the rows of JSON lines that can be read; a line about the others.

    Args:
      names: of the fields that are kept; None: all.
    """
    try:
      lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as error:
      self.say(f'{path}: cannot be read ({error.strerror})')
      return []
    rows, broken = [], []
    for place, line in enumerate(lines, 1):
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):
        row = None
      if isinstance(row, dict):
        if names is not None:
          row = {name: value for name, value in row.items() if name in names}
        rows.append(row)
      elif line.strip():
        broken.append(place)
    if broken:
      self.say(
        f'{path}, line {broken[0]}: not a JSON object; {len(broken)} such lines of '
        f'{len(lines)} are left out'
      )
    return rows

  @property
  def lineage(self) -> dict[str, Any]:
    """Returns what the stages agree on, by dotted name; {} where none says it."""
    for stage in reversed(STAGES):
      lineage = self.summaries.get(stage, {}).get('lineage')
      if isinstance(lineage, dict):
        return lineage
    return {}

  @property
  def seed(self) -> Any:
    """Returns the seed of the run; None where no stage says it."""
    return self.lineage.get('seed')

  @property
  def frames(self) -> int | None:
    """Returns the frames sampled from a video; None where no stage says it."""
    frames = self.lineage.get('data.frames')
    return frames if type(frames) is int and frames > 0 else None

  @property
  def is_of_world(self) -> bool:
    """Returns whether its videos are those of the built-in world."""
    return bool(self.lineage) and not self.lineage.get('data.root')

  def data_root(self) -> pathlib.Path | None:
    """Returns the folder of its videos; None, and a line, if it is not there."""
    named = self.lineage.get('data.root')
    try:
      root = pathlib.Path(named) if named else self._world()
    except UserError as error:
      self.say(f'{error}, so no frames')
      return None
    if root is None or not root.is_dir():
      self.say(f'{root or self.folder / "world-*"}: no such folder, so no frames')
      return None
    return root

  def _world(self) -> pathlib.Path | None:
    """Returns the folder of the built-in world that it was made on."""
    return folders.folder_of_run(self.folder, self.lineage)

  def truth(self) -> Truth | None:
    """Returns the facts of its data set, if it has any."""
    root = self.data_root()
    if root is None:
      return None
    try:
      return Truth.load(root / 'truth.json')
    except (DataError, OSError) as error:
      self.say(str(error))
      return None


def find(paths: Sequence[str | pathlib.Path]) -> list[RunFiles]:
  """Returns the runs in folders, each with what of it can be read.

  Args:
    paths: `<workdir>/<size>`, or `<workdir>` for all sizes in it.

  Raises:
    ReportError: a path is no folder, or has no stage of a run.
  """
  folders: list[pathlib.Path] = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      raise ReportError(f'{path}: no such folder; give a run: <workdir>/<size>')
    sizes = [path / size for size in SIZES if _is_run(path / size)]
    if _is_run(path):
      sizes = [path]
    if not sizes:
      hint = f'; did you mean {path.parent}?' if _is_run(path.parent) else ''
      raise ReportError(
        f'{path}: has none of {", ".join(STAGES)} of a run, nor a folder '
        f'{", ".join(SIZES)} that has{hint or "; give <workdir>/<size>"}'
      )
    folders += [folder for folder in sizes if folder not in folders]
  return [
    read(folder, label)
    for folder, label in zip(folders, labels_of(folders), strict=True)
  ]


def _is_run(folder: pathlib.Path) -> bool:
  """Returns whether a folder has a stage of a run."""
  files = ('summary.json', 'metrics.jsonl', 'audit.jsonl')
  return any((folder / stage / file).exists() for stage in STAGES for file in files)


def labels_of(folders: Sequence[pathlib.Path]) -> list[str]:
  """Returns what distinguishes folders from one another: parts not all share."""
  parts = [pathlib.Path(os.path.abspath(folder)).parts for folder in folders]
  if len(parts) == 1:
    return ['/'.join(parts[0][-2:])]
  shortest = min(map(len, parts))
  first = next(
    (i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest - 1
  )
  last = next(
    (i for i in range(1, shortest + 1) if len({part[-i] for part in parts}) > 1), 1
  )
  return ['/'.join(part[first : len(part) - last + 1]) or part[-1] for part in parts]


def read(folder: pathlib.Path, label: str) -> RunFiles:
  """Returns a run with summaries, metrics and settings of its stages."""
  run = RunFiles(folder, label, [], {}, {}, {})
  for stage in STAGES:
    place = folder / stage
    if not place.is_dir():
      continue
    path = place / 'summary.json'
    if path.exists():
      summary = run.read_json(path)
      if isinstance(summary, dict):
        run.summaries[stage] = summary
      elif summary is not None:
        run.say(f'{path}: contains a {type(summary).__name__}, expected a dict')
    else:
      run.say(f'{path}: no such file; the stage is not done')
    metrics = place / 'metrics.jsonl'
    if metrics.exists():
      run.metrics[stage] = run.read_rows(metrics)
    elif stage in ('sft', 'reward', 'init', 'ppo'):
      run.say(f'{metrics}: no such file, so no curves of {stage}')
    run.settings[stage] = _settings(run, place)
  for stage, earlier, used in _used(run):
    now = run.summaries.get(earlier, {}).get('fingerprint')
    if used and now and used != now:
      run.say(
        f'{folder / stage}: is of another {earlier} than the one that is there now '
        f'(weights {used}, now {now}), as before that was trained anew'
      )
  return run


def _used(run: RunFiles) -> list[tuple[str, str, str | None]]:
  """Returns (stage, earlier stage, fingerprint of what it read of that), if recorded.

  What settings name elsewhere is left out.
  """
  settings = run.settings.get('ppo', {})
  inputs = run.summaries.get('ppo', {}).get('inputs') or {}
  own_critic = settings.get('critic.name') == settings.get('model.name')
  of_ppo = [
    ('ppo', name, inputs.get(f'weights of {name}'))
    for name in ('init', 'reward')
    if not settings.get(f'inputs.{name}') and (name == 'init' or own_critic)
  ]
  weights = run.summaries.get('eval', {}).get('weights') or {}
  of_eval = [
    ('eval', stage, weights.get(model, {}).get('adapter'))
    for model, stage in (('init', 'init'), ('rlaif', 'ppo'))
  ]
  return of_ppo + of_eval


def _settings(run: RunFiles, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what decided the result of a stage, by dotted name."""
  path = folder / 'checkpoints' / 'identity.json'
  if path.exists():
    identity = run.read_json(path)
    return identity if isinstance(identity, dict) else {}
  path = folder / 'audit.jsonl'
  if not path.exists():
    return {}
  try:
    with path.open(encoding='utf-8') as file:
      first = json.loads(file.readline())
    return dict(first['identity'])
  except BROKEN:
    run.say(f'{path}, line 1: no settings of the run')
    return {}
