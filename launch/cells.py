"""Runs the cells of the study stage by stage, each in a run folder of its own."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.settings.build import ConfigError

STAGES = ('sft', 'label', 'init', 'reward', 'ppo')  # the last one is followed by eval
DEFAULT = 'default'


def choose(
  config: Mapping[str, Any], cells: Sequence[str], seeds: Sequence[str]
) -> tuple[list[str], list[int]]:
  """Returns the cells and seeds of a command; the default cell is first, if it runs.

  Raises:
    ConfigError: there is no such cell or seed.
  """
  names = list(config['cells'])
  if unknown := set(cells) - set(names):
    raise ConfigError(
      f'--cells: no {", ".join(sorted(unknown))}; choose of {", ".join(names)}'
    )
  numbers = [int(seed) if seed.isdigit() else -1 for seed in seeds]
  if unknown := [s for s, n in zip(seeds, numbers, strict=True) if n < 0]:
    raise ConfigError(f'--seeds: must be numbers >= 0, got {", ".join(unknown)}')
  names = list(cells) or list(config['cells'])
  return sorted(names, key=lambda name: name != DEFAULT), numbers or list(
    config['seeds']
  )


def run_cell(
  root: pathlib.Path,
  name: str,
  cell: Mapping[str, Any],
  seed: int,
  run: Callable[[list[str]], None],
) -> None:
  """Runs the stages of a cell that are not done.

  Args:
    run: runs a command, given as its arguments.

  Raises:
    ConfigError: a stage that is shared with the default run is not there.
  """
  workdir = root / f'{name}-{seed}'
  folder = workdir / 'tiny'
  link_shared(root / f'{DEFAULT}-{seed}' / 'tiny', folder, cell.get('shared', ()))
  for stage in STAGES:
    done = folder / ('eval' if stage == 'ppo' else stage) / 'summary.json'
    if done.is_file():
      continue
    changes = {**cell.get('all', {}), **cell.get(stage, {}), 'seed': seed}
    run(
      [
        *(sys.executable, '-m', 'launch.train', '--config', f'configs/{stage}.py'),
        *(f'--config.{field}={value}' for field, value in changes.items()),
        f'--workdir={workdir}',
      ]
    )


def link_shared(
  source: pathlib.Path, folder: pathlib.Path, stages: Sequence[str]
) -> None:
  """Links stages of the default run, with its world and features, into a cell's."""
  if not stages:
    return
  for stage in stages:
    if not (source / stage / 'summary.json').is_file():
      raise ConfigError(
        f'{source / stage}: not done, and {folder.parent.name} shares it; run '
        f'--cells={DEFAULT} with the same seed first'
      )
  folder.mkdir(parents=True, exist_ok=True)
  names = [*stages, 'features', *(path.name for path in source.glob('world-*'))]
  for name in names:
    link = folder / name
    if not link.exists():
      link.symlink_to((source / name).resolve(), target_is_directory=True)


def execute(command: list[str]) -> None:
  """Runs a command; its failure ends the study with the same status."""
  sys.stdout.write(f'$ {" ".join(command[1:])}\n')
  sys.stdout.flush()
  status = subprocess.run(command).returncode
  if status:
    raise SystemExit(status)
