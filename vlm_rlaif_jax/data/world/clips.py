"""Writes the clips of the video world, from both ends of their list at once.

`build` writes clips from the first on while a process of its own writes them from the
last on, until they meet. The process imports no JAX, and where it cannot run, `build`
writes all clips by itself.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from vlm_rlaif_jax.data.decoder_pool import child_environment
from vlm_rlaif_jax.data.world import render
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.settings.sections import WorldConfig

SPLITS = ('sft', 'preference', 'rl', 'test')
MODULE = 'vlm_rlaif_jax.data.world.clips'
FEWEST = 200  # clips that are worth the start of a process

Clip = tuple[str, int]  # split, number


def clips_of(world: WorldConfig) -> list[Clip]:
  """Returns the clips of all splits, in order."""
  return [
    (split, number) for split in SPLITS for number in range(getattr(world, split))
  ]


def scene_of(world: WorldConfig, split: str, number: int) -> scenes.Scene:
  """Returns the scene of one clip, a function of the seed."""
  rng = np.random.default_rng([world.seed, 0, SPLITS.index(split), number])
  return scenes.sample_scene(rng)


def clip_path(folder: pathlib.Path, split: str, number: int) -> pathlib.Path:
  """Returns the file of a clip below the folder of the world."""
  return folder / 'videos' / split / f'{number:05d}.mp4'


def write_clip(path: pathlib.Path, scene: scenes.Scene, writer: str) -> bool:
  """Writes a clip, complete or not at all; returns False where it exists.

  Args:
    writer: a name that no other process writes by.
  """
  if path.exists():
    return False
  part = path.with_suffix(f'.{writer}.part')
  render.write_mp4(render.render(scene), part)
  os.replace(part, path)
  return True


@contextlib.contextmanager
def written_from_the_end(folder: pathlib.Path, world: WorldConfig) -> Iterator[None]:
  """Has a process write the clips from the last on, as long as the context lasts.

  On leaving, no process writes to the folder any more.
  """
  if len(clips_of(world)) < FEWEST:
    yield
    return
  request = json.dumps(
    {
      'folder': str(folder),
      'parent': os.getpid(),
      'world': dataclasses.asdict(world),
    }
  )
  process = subprocess.Popen(
    [sys.executable, '-m', MODULE, request],
    stdin=subprocess.DEVNULL,
    env=child_environment(),
  )
  try:
    yield
  finally:
    process.kill()
    process.wait()
    for part in (folder / 'videos').glob('*/*.end.part'):
      part.unlink()


def main(request: str) -> None:
  """Writes clips from the last on, until one exists or the parent is gone."""
  fields = json.loads(request)
  folder, world = pathlib.Path(fields['folder']), WorldConfig(**fields['world'])
  for split, number in reversed(clips_of(world)):
    if os.getppid() != fields['parent']:
      return
    scene = scene_of(world, split, number)
    if not write_clip(clip_path(folder, split, number), scene, 'end'):
      return


if __name__ == '__main__':
  main(sys.argv[1])
