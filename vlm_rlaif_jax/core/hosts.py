"""Coordinates the processes of one run: which of them writes, and that all agree."""

import fcntl
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_rlaif_jax.settings.build import UserError

T = TypeVar('T')
PACKAGE = pathlib.Path(__file__).parents[1]

LOCK = '.lock'  # the file by which a folder is claimed
_locks: dict[pathlib.Path, int] = {}  # file descriptors; closing one unlocks


class HostError(UserError):
  """An error of one host, or a difference between hosts, that stops all of them."""


def is_first() -> bool:
  """Returns whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every host has called it; does nothing if there is only one."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(values: Mapping[str, Callable[[], object]]) -> None:
  """Raises HostError unless every host has the same value under every name.

  Args:
    values: name -> a function that returns something JSON can hold, as settings or a
      fingerprint; it is not called if there is only one host.
  """
  if jax.process_count() == 1:
    return
  digests = np.stack([_digest(value()) for value in values.values()])
  everywhere = np.asarray(multihost_utils.process_allgather(digests))
  differs = np.any(everywhere != everywhere[:1], axis=-1)  # [hosts, values]
  for name, column in zip(values, differs.T, strict=True):
    if column.any():
      hosts = ', '.join(str(host) for host in np.flatnonzero(column))
      raise HostError(
        f'{name}: host {hosts} of {jax.process_count()} differs from host 0; start all '
        'hosts with the same flags, files and code'
      )


def gather(value: Any) -> list:
  """Returns the value of every host, in their order; values travel as JSON."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(text))))
  padded = np.pad(text, (0, int(lengths.max()) - len(text)))
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def together(work: Callable[[], T]) -> T:
  """Returns `work()` of this host; a UserError of any host stops all of them."""
  if jax.process_count() == 1:
    return work()
  result = problem = None
  try:
    result = work()
  except UserError as error:
    problem = str(error)
  problems = [f'host {i}: {text}' for i, text in enumerate(gather(problem)) if text]
  if problems:
    raise HostError('; '.join(problems))
  return cast(T, result)


def any_host(flag: bool) -> bool:
  """Returns whether the flag is true on any host; all hosts must call it."""
  return any(gather(flag))


def _digest(value: object) -> np.ndarray:
  """Returns the SHA-256 of a value, `uint8[32]`."""
  text = json.dumps(value, sort_keys=True, default=str)
  return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def code_fingerprint() -> str:
  """Returns the fingerprint of this package's source and of the version of JAX."""
  digest = hashlib.sha256(jax.__version__.encode())
  for path in sorted(PACKAGE.rglob('*.py')):
    digest.update(str(path.relative_to(PACKAGE)).encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def data_fingerprint(root: str | pathlib.Path, *files: str) -> str:
  """Returns the fingerprint of the files of samples below a data folder.

  Args:
    files: further files, below the folder or elsewhere; '' stands for none.
  """
  root = pathlib.Path(root)
  paths = [
    path
    for kind in ('instructions/**/*.json*', 'eval/*.json*', 'truth.json')
    for path in sorted(root.glob(kind))
  ]
  return files_fingerprint([*paths, *(root / name for name in files if name)])


def files_fingerprint(paths: Iterable[pathlib.Path]) -> str:
  """Returns the fingerprint of names and contents; of missing files, of names only."""
  digest = hashlib.sha256()
  for path in paths:
    digest.update(path.name.encode())
    if path.is_file():
      digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def claim(folder: pathlib.Path) -> None:
  """Makes a folder and locks it for this run until its process ends.

  Two commands that write the same files would replace each other's. Storage without
  locks is used without one.

  Raises:
    UserError: the folder cannot be written, or another run has locked it.
  """
  _make(folder)
  mark = folder.resolve() / LOCK
  if not is_first() or mark in _locks:
    return
  try:
    file = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise UserError(f'{folder}: cannot be written to ({error.strerror})') from None
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):
    owner = os.read(file, 1000).decode().strip() or 'unknown'
    os.close(file)
    raise UserError(
      f'{folder}: another run is writing there (process {owner}); wait for it, '
      'stop it, or choose another --workdir'
    ) from None
  except OSError:
    pass  # this storage has no locks
  os.ftruncate(file, 0)
  os.write(file, f'{os.getpid()} on {os.uname().nodename}\n'.encode())
  _locks[mark] = file


def _make(folder: pathlib.Path) -> None:
  """Makes a folder; raises UserError if it cannot."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder}: cannot be made ({error.strerror}); choose another --workdir'
    ) from None


def shared_folder(folder: pathlib.Path) -> None:
  """Raises HostError for a folder that other hosts do not see, or name otherwise."""
  if jax.process_count() == 1:
    return
  agree({'--workdir': lambda: str(folder)})  # barriers are named by it
  # A name of this start alone: a host may have a copy of what an earlier one left.
  mark = folder / f'.hosts-{gather(secrets.token_hex(8))[0]}'
  together(lambda: _make(folder) if is_first() else None)
  if is_first():
    mark.write_text('every host must see this file\n')
  barrier(f'mark {folder}')
  visible = np.asarray(gather(mark.exists()))
  if is_first():
    mark.unlink(missing_ok=True)
  if not visible.all():
    hosts = ', '.join(str(host) for host in np.flatnonzero(~visible))
    raise HostError(
      f'--workdir {folder}: host {hosts} does not see what host 0 writes there; use '
      'storage that all hosts share'
    )


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file on the first host; a kill meanwhile leaves the former contents."""
  if is_first():
    part = path.with_name(f'{path.name}.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)
