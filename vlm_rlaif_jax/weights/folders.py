"""Folders that appear complete or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

from vlm_rlaif_jax.weights.errors import ConvertError


@contextlib.contextmanager
def atomic_folder(
  folder: pathlib.Path, *, replace: bool = False, nbytes: int = 0
) -> Iterator[pathlib.Path]:
  """Yields `<folder>.part`, which becomes the folder if no error occurs.

  Args:
    replace: an existing folder may be replaced; it stays until the new one is complete.
    nbytes: that will be written; a disk without room is refused at once.
  """
  if folder.exists() and not replace:
    raise ConvertError(f'{folder}: exists already; give another, or --overwrite')
  part, old = side_folders(folder)
  if old.exists():
    raise ConvertError(
      f'{old}: the contents of {folder} before a conversion that was killed; move it '
      'away'
    )
  shutil.rmtree(part, ignore_errors=True)
  try:
    part.mkdir(parents=True)
    free = shutil.disk_usage(part).free
    if nbytes > free:
      raise ConvertError(
        f'{folder}: {nbytes / 1e9:.1f} GB to write, {free / 1e9:.1f} GB are free'
      )
    yield part
    _put(part, folder.resolve(), old)
  except OSError as error:
    raise ConvertError(f'{folder}: cannot be written ({error})') from None
  finally:
    shutil.rmtree(part, ignore_errors=True)


def side_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns where a folder is made, and where the one that it replaces waits."""
  place = folder.resolve()  # a link stays one: what it points to is replaced
  return place.with_name(f'{place.name}.part'), place.with_name(f'{place.name}.old')


def _put(part: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
  """Deletes the old folder only after the new one has its place."""
  try:
    if folder.exists():
      os.rename(folder, old)
    os.replace(part, folder)
  except BaseException:  # Ctrl-C between the two, too
    if old.exists() and not folder.exists():
      os.rename(old, folder)
    raise
  shutil.rmtree(old, ignore_errors=True)


def copy_files(
  source: pathlib.Path, target: pathlib.Path, names: Iterable[str]
) -> list[str]:
  """Copies those of the named files that exist; returns their names."""
  present = [name for name in names if (source / name).is_file()]
  for name in present:
    shutil.copyfile(source / name, target / name)
  return present
