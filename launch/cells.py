"""Runs the cells of the study stage by stage, each in a run folder of its own.

A stage that refuses its settings or what the stages before left (a gate, say) ends its
cell and no other; a note beside the cell's stages names it, for the study's table.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports import study_pairs
from vlm_rlaif_jax.settings.build import ConfigError

STAGES = ('sft', 'label', 'init', 'reward', 'ppo', 'eval')
DEFAULT = 'default'
_REFUSES = 2  # the status of a command that ends in one line, `process.one_line_errors`


class RefusedError(Exception):
  """A stage ended in one line that says what it refuses."""


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


def seeds_there(
  root: pathlib.Path, cells: Iterable[str], seeds: Sequence[int]
) -> list[int]:
  """Returns the seeds of the study, and further ones that cells have run with."""
  names = [
    path.name.removeprefix(f'{cell}-')
    for cell in cells
    for path in root.glob(f'{cell}-*')
  ]
  others = {int(name) for name in names if name.isdecimal() and name == str(int(name))}
  return [*seeds, *sorted(others - set(seeds))]


def run_cell(
  root: pathlib.Path,
  name: str,
  cell: Mapping[str, Any],
  seed: int,
  run: Callable[[list[str]], None],
) -> str:
  """Runs the stages of a cell that are not done, and those behind them.

  What is behind a stage that runs was made of what it had left before: the stage itself
  says whether it still is of this run. So it does where its flags are others now, or
  where a stage of the default run that it stands on has run since.

  Args:
    run: runs a command, given as its arguments.

  Returns:
    the stage that refuses to run, '' if none does.

  Raises:
    ConfigError: a stage that is shared with the default run is not there.
  """
  workdir = root / f'{name}-{seed}'
  link_shared(root / f'{DEFAULT}-{seed}', workdir, cell.get('shared', ()))
  workdir.mkdir(parents=True, exist_ok=True)
  note, record = workdir / study_pairs.REFUSED, workdir / study_pairs.FLAGS
  note.unlink(missing_ok=True)
  former = json.loads(record.read_text()) if record.is_file() else {}
  shared = [workdir / 'tiny' / stage for stage in cell.get('shared', ())]
  newest_shared = max(map(_finished_at, shared), default=0.0)
  own = [  # what is shared is run by the default run
    (folder, command)
    for folder, command in commands(root, workdir, cell, seed)
    if folder not in shared
  ]
  flags = {str(folder.relative_to(root)): _flags(one, root) for folder, one in own}
  is_done = [
    former.get(name, flags[name]) == flags[name]
    and _finished_at(folder) > 0
    # A base that all cells share stands on no stage.
    and (_finished_at(folder) >= newest_shared or workdir not in folder.parents)
    for name, (folder, _) in zip(flags, own, strict=True)
  ]
  first = is_done.index(False) if False in is_done else len(own)

  # What is still to run is written first: of a kill, the next command goes on with it.
  state = {name: flags[name] if i < first else None for i, name in enumerate(flags)}
  _write(record, state)
  for name, (folder, command) in list(zip(flags, own, strict=True))[first:]:
    try:
      run(command)
    except RefusedError:
      note.write_text(folder.name)
      return folder.name
    state[name] = flags[name]
    _write(record, state)
  return ''


def _write(path: pathlib.Path, value: Any) -> None:
  """Writes JSON; a kill meanwhile leaves what was there.

  Not by `core.hosts`, which asks JAX who is first: the devices are the commands'.
  """
  part = path.with_name(f'{path.name}.part')
  part.write_text(json.dumps(value, indent=1) + '\n')
  part.replace(path)


def _finished_at(folder: pathlib.Path) -> float:
  """Returns when a stage was done, in seconds; 0 where it is not."""
  path = folder / 'summary.json'
  return path.stat().st_mtime if path.is_file() else 0.0


def _flags(command: Sequence[str], root: pathlib.Path) -> list[str]:
  """Returns config and settings of a command, of whatever folder the study is in."""
  start = command.index('--config')
  return [argument.replace(str(root), '') for argument in command[start:-2]]


Command = tuple[pathlib.Path, list[str]]  # where its summary will be, its arguments


def commands(
  root: pathlib.Path, workdir: pathlib.Path, cell: Mapping[str, Any], seed: int
) -> Iterator[Command]:
  """Yields the stages of a cell in their order, done or not.

  A critic of another size stands on a base that is pretrained once for all cells.
  """
  critic, label = cell.get('critic', 'tiny'), workdir / 'tiny' / 'label'
  base = root / critic / 'pretrain' / 'artifact'
  for stage in STAGES:
    changes = {**cell.get('all', {}), **cell.get(stage, {}), 'seed': seed}
    arg = size = 'tiny'
    if critic != 'tiny' and stage == 'reward':
      yield base.parent, _command('pretrain', critic, {}, root)
      tuning = {'seed': seed, 'base': base}
      yield workdir / critic / 'sft', _command('sft', critic, tuning, workdir)
      arg = size = critic
      changes |= {'base': base, 'inputs.pairs': label / 'pairs.json'}
    if critic != 'tiny' and stage == 'ppo':
      arg = f'tiny,critic={critic}'
      changes |= {'critic_base': base, 'inputs.label': label}
    yield workdir / size / stage, _command(stage, arg, changes, workdir)


def _command(
  stage: str, arg: str, changes: Mapping[str, Any], workdir: pathlib.Path
) -> list[str]:
  """Returns the command of one stage alone, with these settings."""
  return [
    *(sys.executable, '-m', 'launch.train', '--config', f'configs/{stage}.py:{arg}'),
    *(f'--config.{field}={value}' for field, value in changes.items()),
    *('--nofollow', f'--workdir={workdir}'),
  ]


def link_shared(
  default: pathlib.Path, workdir: pathlib.Path, stages: Sequence[str]
) -> None:
  """Links stages of the default run, with its world and features, into a cell's."""
  source, folder = default / 'tiny', workdir / 'tiny'
  if not stages:
    return
  for stage in stages:
    if not (source / stage / 'summary.json').is_file():
      raise ConfigError(
        f'{source / stage}: not done, and {workdir.name} shares it; run '
        f'--cells={DEFAULT} with the same seed first'
      )
  folder.mkdir(parents=True, exist_ok=True)
  worlds = [path.name for path in source.glob('world-*')]
  links = {folder / name: source / name for name in (*stages, *worlds)}
  links[workdir / 'features'] = default / 'features'
  for link, target in links.items():
    # Relative ones are right in a study that was moved or copied, too.
    text = os.path.relpath(target.resolve(), link.parent.resolve())
    if link.is_symlink() and os.readlink(link) != text:
      link.unlink()
    if not link.exists() and target.exists():
      link.symlink_to(text, target_is_directory=True)


def execute(command: list[str]) -> None:
  """Runs a command; its failure ends the study with the same status.

  Raises:
    RefusedError: it ended in one line, which is on the terminal.
  """
  sys.stdout.write(f'$ {" ".join(command[1:])}\n')
  sys.stdout.flush()
  status = subprocess.run(command).returncode
  if status == _REFUSES:
    raise RefusedError
  if status:
    raise SystemExit(status)
