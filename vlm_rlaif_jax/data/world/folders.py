"""Names the folders of video worlds, and finds that of a run; loads no JAX."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import WorldConfig

VERSION = 3  # of all that `build` writes; a change makes another world
LATER = {'clip_captions': True}  # settings since then, at the value of worlds before


def world_folder(
  parent: str | pathlib.Path, world: WorldConfig, frames: int
) -> pathlib.Path:
  """Returns the folder of a world, existing or not: its name is a hash of settings."""
  named = dataclasses.asdict(world)
  for name, default in LATER.items():
    if named[name] == default:
      del named[name]
  text = json.dumps([VERSION, named, frames], sort_keys=True)
  return pathlib.Path(parent) / f'world-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def recorded_folder(
  parent: str | pathlib.Path, lineage: Mapping[str, Any]
) -> pathlib.Path | None:
  """Returns the folder of the world that a stage ran on, existing or not.

  Args:
    lineage: settings by dotted name, as summaries of stages have them.

  Returns:
    None where this version has other settings of a world.
  """
  values: dict[str, Any] = {
    name.removeprefix('world.'): tuple(value) if isinstance(value, list) else value
    for name, value in lineage.items()
    if name.startswith('world.')
  }
  try:
    return world_folder(parent, WorldConfig(**values), lineage['data.frames'])
  except (KeyError, TypeError, ValueError):
    return None


def folder_of_run(
  parent: pathlib.Path, lineage: Mapping[str, Any]
) -> pathlib.Path | None:
  """Returns the folder of the world that a run was made on; None: it has none.

  A run may have several worlds, and records of one id in two of them have other facts.
  Of those in a folder, one whose settings are others than the run's is never meant.

  Args:
    parent: folder of the run.
    lineage: as `recorded_folder` takes it.

  Raises:
    UserError: its world is not there, or nothing says which of several it is.
  """
  worlds = [path.parent for path in sorted(parent.glob('world-*/truth.json'))]
  worlds = [world for world in worlds if world.suffix != '.part']
  recorded = recorded_folder(parent, lineage)
  if recorded in worlds:
    return recorded
  possible = [world for world in worlds if _agrees(world, lineage)]
  if len(possible) > 1:
    names = ', '.join(world.name for world in possible)
    raise UserError(
      f'{parent}: {len(possible)} worlds ({names}), and its summaries name none of '
      'them; move away those that it was not made on'
    )
  if not possible and any(name.startswith('world.') for name in lineage):
    raise UserError(
      f'{recorded or parent / "world-*"}: the world of this run is not there, expected '
      f'truth.json in it; there are {", ".join(x.name for x in worlds) or "none"}'
    )
  return possible[0] if possible else None


def _agrees(folder: pathlib.Path, lineage: Mapping[str, Any]) -> bool:
  """Returns whether a world has the settings that a run recorded, as far as it did."""
  path = folder / 'world.json'
  own = json.loads(path.read_text()) if path.is_file() else {}
  return all(
    lineage.get(f'world.{name}', value) == value for name, value in own.items()
  )
