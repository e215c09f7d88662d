"""Which files of a data set are missing, and which have the same contents.

No file is decoded. A folder that many of the files are in is listed once, which costs
less than a look at each, most of all on storage over a network.
"""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterable

from vlm_rlaif_jax.core import hosts

LISTED = 8  # files of one folder from which on the folder is listed
PART = 65536  # bytes that are read at the start, the middle and the end of a file


class DataFiles:
  """Looks at files below a root, at each one once.

  Args:
    root: folder that the paths are relative to.
    workers: files that are looked at at a time.
  """

  def __init__(self, root: str | pathlib.Path, workers: int):
    self.root, self.workers = pathlib.Path(root), workers
    self._stats: dict[str, os.stat_result] = {}

  def problems(self, paths: Iterable[str]) -> dict[str, str]:
    """Returns the paths that are no files, and why, as any host finds them."""
    folders: dict[str, list[str]] = collections.defaultdict(list)
    for path in dict.fromkeys(paths):
      folders[os.path.dirname(path)].append(path)
    local: dict[str, str] = {}
    single: list[str] = []
    for folder, members in folders.items():
      names = self._listed(folder) if len(members) >= LISTED else None
      if names is None:
        single += members
      else:
        # What the listing does not call a file is looked at, for the reason.
        single += [path for path in members if os.path.basename(path) not in names]
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      reasons = pool.map(self._problem, single)
      local = {path: why for path, why in zip(single, reasons, strict=True) if why}
    return {path: why for host in hosts.gather(local) for path, why in host.items()}

  def _listed(self, folder: str) -> set[str] | None:
    """Returns the names of the files in a folder; None if it cannot be listed."""
    try:
      with os.scandir(self.root / folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
    except OSError:
      return None

  def _problem(self, path: str) -> str:
    """Returns why a path is no file; '' if it is one."""
    full = self.root / path
    try:
      status = self._stat(path)
    except FileNotFoundError:
      return f'{full}: no such file'
    except (OSError, ValueError) as error:
      return f'{full}: {getattr(error, "strerror", None) or error}'
    if stat.S_ISDIR(status.st_mode):
      return f'{full}: a folder; list its pictures in `images` instead'
    return '' if status.st_size else f'{full}: empty'

  def _stat(self, path: str) -> os.stat_result:
    if path not in self._stats:
      self._stats[path] = (self.root / path).stat()
    return self._stats[path]

  def same(self, samples: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Returns groups of names that stand for the same contents.

    Sizes are compared first; of files of one size the beginning, the middle and the end
    are read. Files that differ in between count as the same, which errs on the safe
    side: they are kept together.

    Args:
      samples: name -> the files that are compared. Those that are missing are like no
        other.
    """
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:

      def grouped(names: list[str], identities: Iterable) -> list[list[str]]:
        groups: dict = collections.defaultdict(list)
        for name, identity in zip(names, identities, strict=True):
          if identity is not None:
            groups[identity].append(name)
        return [group for group in groups.values() if len(group) > 1]

      sizes = pool.map(self._sizes, samples.values())
      result = []
      for names in grouped(list(samples), sizes):
        contents = pool.map(self._contents, (samples[name] for name in names))
        result += grouped(names, contents)
      return result

  def _sizes(self, paths: tuple[str, ...]) -> tuple[int, ...] | None:
    try:
      return tuple(self._stat(path).st_size for path in paths)
    except (OSError, ValueError):
      return None

  def _contents(self, paths: tuple[str, ...]) -> str | None:
    """Returns the hash of parts of files; None if one cannot be read."""
    digest = hashlib.sha256()
    try:
      for path in paths:
        size = self._stat(path).st_size
        with (self.root / path).open('rb') as file:
          for start in sorted({0, max(size - PART, 0) // 2, max(size - PART, 0)}):
            file.seek(start)
            digest.update(file.read(PART))
    except OSError:
      return None
    return digest.hexdigest()
