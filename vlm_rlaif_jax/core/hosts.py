"""Several processes of one run: who writes, who waits, and that all run the same."""

import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_rlaif_jax.settings.build import UserError

T = TypeVar('T')
PACKAGE = pathlib.Path(__file__).parents[1]

LOCK = '.lock'  # the file by which a folder is claimed
_held: dict[pathlib.Path, int] = {}  # descriptors, and so locks, until the process ends


class HostError(UserError):
  """Hosts that do not run the same program on the same things."""


def is_first() -> bool:
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every host is here; nothing where there is one."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(things: Mapping[str, Callable[[], object]]) -> None:
  """Refuses to go on unless every host has the same value under every name.

  Args:
    things: name -> what gives a value that JSON can hold: settings, a fingerprint; not
      asked for where there is one host. The names are the same everywhere.
  """
  if jax.process_count() == 1:
    return
  digests = np.stack([_digest(value()) for value in things.values()])
  everywhere = np.asarray(multihost_utils.process_allgather(digests))
  differs = np.any(everywhere != everywhere[:1], axis=-1)  # [hosts, things]
  for name, column in zip(things, differs.T, strict=True):
    if column.any():
      hosts = ', '.join(str(host) for host in np.flatnonzero(column))
      raise HostError(
        f'{name}: host {hosts} of {jax.process_count()} does not have what host 0 has; '
        'start every host with the same'
      )


def gather(value) -> list:
  """What every host has to say, in the order of the hosts; JSON carries it."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(text))))
  padded = np.pad(text, (0, int(lengths.max()) - len(text)))
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def together(work: Callable[[], T]) -> T:
  """What `work` gives here; an error that the user can put right stops every host."""
  if jax.process_count() == 1:
    return work()
  result = problem = None
  try:
    result = work()
  except UserError as error:
    problem = str(error)
  said = [f'host {i}: {why}' for i, why in enumerate(gather(problem)) if why]
  if said:
    raise HostError('; '.join(said))
  return cast(T, result)


def anybody(asks: bool) -> bool:
  """Whether any host does; all must call it."""
  return any(gather(asks))


def _digest(value) -> np.ndarray:
  text = json.dumps(value, sort_keys=True, default=str)
  return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def code_fingerprint() -> str:
  """Of the source of this package and the version of JAX."""
  digest = hashlib.sha256(jax.__version__.encode())
  for path in sorted(PACKAGE.rglob('*.py')):
    digest.update(str(path.relative_to(PACKAGE)).encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def data_fingerprint(root: str | pathlib.Path, *files: str) -> str:
  """Of the rows below a data folder: names and contents of what stages read there.

  Args:
    files: further ones, below the folder or anywhere; '' is none.
  """
  root = pathlib.Path(root)
  found = [
    path
    for kind in ('instructions/**/*.json*', 'eval/*.json*', 'truth.json')
    for path in sorted(root.glob(kind))
  ]
  return files_fingerprint([*found, *(root / name for name in files if name)])


def files_fingerprint(paths: Iterable[pathlib.Path]) -> str:
  """Of names and contents; of one that is not there, the name."""
  digest = hashlib.sha256()
  for path in paths:
    digest.update(path.name.encode())
    if path.is_file():
      digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def claim(folder: pathlib.Path) -> None:
  """Makes a folder this run's own until its process ends, however it ends.

  Two commands that write the same files would move each other's away. Storage that
  knows no locks is used without one.
  """
  _make(folder)
  mark = folder.resolve() / LOCK
  if not is_first() or mark in _held:
    return
  try:
    file = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise UserError(f'{folder}: cannot be written to ({error.strerror})') from None
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):
    who = os.read(file, 1000).decode().strip() or 'unknown'
    os.close(file)
    raise UserError(
      f'{folder}: another run is writing there (process {who}); wait for it, stop it, '
      'or choose another --workdir'
    ) from None
  except OSError:
    pass  # no locks here
  os.ftruncate(file, 0)
  os.write(file, f'{os.getpid()} on {os.uname().nodename}\n'.encode())
  _held[mark] = file


def _make(folder: pathlib.Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder}: cannot be made ({error.strerror}); choose another --workdir'
    ) from None


def shared_folder(folder: pathlib.Path) -> None:
  """Refuses a folder that the other hosts cannot see: checkpoints need one storage."""
  if jax.process_count() == 1:
    return
  mark = folder / '.hosts'
  together(lambda: _make(folder) if is_first() else None)
  if is_first():
    mark.write_text('every host must see this file\n')
  barrier(f'mark {folder}')
  seen = np.asarray(multihost_utils.process_allgather(np.asarray(mark.exists())))
  if not seen.all():
    hosts = ', '.join(str(host) for host in np.flatnonzero(~seen))
    raise HostError(
      f'--workdir {folder}: host {hosts} does not see what host 0 writes there; use '
      'storage that all hosts share'
    )


def write_whole(path: pathlib.Path, text: str) -> None:
  """The first host's; whole or, if it is killed meanwhile, as before."""
  if is_first():
    part = path.with_name(f'{path.name}.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)
