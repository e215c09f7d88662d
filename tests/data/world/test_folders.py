"""The world of a run is never another one that lies beside it."""

import dataclasses
import json
import shutil

import pytest

from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import WorldConfig


def lineage_of(world):
  values = json.loads(json.dumps(dataclasses.asdict(world)))
  return {f'world.{k}': v for k, v in values.items()} | {'data.frames': 12}


def write(parent, world, name=''):
  folder = parent / name if name else folders.world_folder(parent, world, 12)
  folder.mkdir()
  (folder / 'world.json').write_text(json.dumps(dataclasses.asdict(world)))
  (folder / 'truth.json').write_text('{}')
  return folder


def test_the_world_of_a_run_is_that_of_its_settings(tmp_path):
  worlds = {seed: write(tmp_path, WorldConfig(seed=seed)) for seed in range(4)}
  (tmp_path / 'world-00000000.part').mkdir()
  (tmp_path / 'world-00000000.part' / 'truth.json').write_text('{}')
  for seed, folder in worlds.items():
    lineage = lineage_of(WorldConfig(seed=seed))
    assert folders.folder_of_run(tmp_path, lineage) == folder


def test_a_world_of_another_version_is_known_by_its_settings(tmp_path):
  own, other = WorldConfig(seed=1), WorldConfig(seed=2)
  write(tmp_path, other)
  folder = write(tmp_path, own, 'world-0ld0ld00')
  assert folders.folder_of_run(tmp_path, lineage_of(own)) == folder
  lineage = lineage_of(own) | {'world.removed': 1}  # a setting of another version
  assert folders.folder_of_run(tmp_path, lineage) == folder


def test_the_world_of_another_run_is_none(tmp_path):
  own, other = WorldConfig(seed=1), write(tmp_path, WorldConfig(seed=2))
  with pytest.raises(UserError, match=f'is not there, .* there are {other.name}'):
    folders.folder_of_run(tmp_path, lineage_of(own))
  assert folders.folder_of_run(tmp_path, {}) == other  # nothing says otherwise
  write(tmp_path, WorldConfig(seed=3))
  with pytest.raises(UserError, match=r'2 worlds .* name none of them'):
    folders.folder_of_run(tmp_path, {})
  for folder in tmp_path.glob('world-*'):
    shutil.rmtree(folder)
  assert folders.folder_of_run(tmp_path, {}) is None
