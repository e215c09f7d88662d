"""Saves training states: adapters, heads, optimizer, key and data position.

The base is never saved, only its fingerprint; a resume on another base is refused.
Saves are asynchronous and atomic; a run that was killed at any time resumes from the
last one and computes what it would have computed.
"""

import contextlib
import copy
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.sections import CheckpointConfig
from vlm_rlaif_jax.train import console, journal
from vlm_rlaif_jax.train import state as states

IDENTITY = 'identity.json'  # beside the steps: of which run they are
LONGEST = 300  # characters of a reason in an error
DROPPED = 'checkpoints.dropped'  # beside the folder: what a restart is removing


class Checkpointer:
  """Saves and restores the training state of one stage.

  Args:
    folder: of the stage.
    settings: when to save, and what to do when settings have changed.
    identity: of `journal.identity`; must agree for a resume.
  """

  def __init__(self, folder: pathlib.Path, settings: CheckpointConfig, identity: dict):
    self.settings = settings
    self.identity = identity
    hosts.agree({'settings and weights': lambda: identity})
    root = self.root = folder.resolve() / 'checkpoints'
    if settings.on_change == 'restart':
      self._restart(folder, root)
    # Before orbax starts threads, which may speak up when the process ends at once.
    elif differing := self._changes(root):
      if settings.on_change == 'stop':
        raise journal.refusal(root, differing)
      console.say(f'  {root} is continued although {"; ".join(differing)}')
    hosts.barrier(f'open {folder}')
    self.manager = ocp.CheckpointManager(
      root,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=settings.keep, cleanup_tmp_directories=True
      ),
      item_names=('state', 'extra'),
    )
    hosts.barrier(f'compared {folder}')
    if hosts.is_first():
      shutil.rmtree(root.with_name(DROPPED), ignore_errors=True)
      root.mkdir(parents=True, exist_ok=True)
    if not _steps(root):
      self._identify()

  def _identify(self) -> None:
    """Writes of which run the steps are.

    Those of another run, which is ignored, stay that one's until this one saves: it may
    fail before, and the other one go on.
    """
    hosts.write_atomically(self.root / IDENTITY, json.dumps(self.identity, indent=1))

  def _restart(self, folder: pathlib.Path, root: pathlib.Path) -> None:
    """Drops what an earlier run has saved, whether or not it was another one."""
    steps = _steps(root)
    try:
      differing = self._changes(root)
    except journal.ResumeError:  # damaged
      differing = []
    hosts.barrier(f'restart {folder}')  # everybody has looked
    if steps:
      journal.forget(folder, f'{root} (step {max(steps)})', differing)
    if hosts.is_first() and root.exists():
      # A kill while files are removed must leave no step behind that looks whole.
      dropped = root.with_name(DROPPED)
      shutil.rmtree(dropped, ignore_errors=True)
      root.rename(dropped)

  def _changes(self, root: pathlib.Path) -> list[str]:
    """Returns the fields that differ from a run that has saved something.

    Raises:
      ResumeError: it is not known what was saved, and the settings do not ignore that.
    """
    path = root / IDENTITY
    if not _steps(root):
      return []
    try:
      saved = json.loads(path.read_text())
    except FileNotFoundError:
      saved, problem = None, 'missing beside saved steps'
    except ValueError:
      saved, problem = None, 'damaged'
    else:
      problem = f'a {type(saved).__name__}'
    if isinstance(saved, dict):
      return journal.changes(saved, self.identity)
    if self.settings.on_change == 'ignore':
      return [f'{IDENTITY} is {problem}, and nobody knows of which run it is']
    raise journal.ResumeError(
      f'{path}: {problem}, expected the settings of this run as JSON; '
      '--config.checkpoint.on_change=restart starts anew, ignore goes on'
    )

  def save(self, state: states.TrainState, extra: dict[str, Any] | None = None) -> None:
    """Saves in the background; returns once everything has been copied.

    The caller may change `extra`, and what is in it, while a thread still writes.
    """
    step = int(state.step)
    self._identify()
    if step in self.manager.all_steps():
      return
    with self._naming_a_full_disk():
      self.manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(states.portable(state)),
          extra=ocp.args.JsonSave(copy.deepcopy(extra or {})),
        ),
      )

  def restore(self, like: states.TrainState) -> tuple[states.TrainState, dict] | None:
    """Returns the newest state, sharded as `like`, and its extras.

    Raises:
      ResumeError: it is damaged, or of another network than `like`.
    """
    step = self.manager.latest_step()
    if step is None:
      return None
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, states.portable(like))
    try:
      saved = self.manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore()
        ),
      )
      return states.from_portable(saved['state']), saved['extra']
    except (ValueError, OSError, KeyError, TypeError) as error:
      raise self._unreadable(step, error) from error

  def _unreadable(self, step: int, error: Exception) -> journal.ResumeError:
    """Returns the error about a saved state that does not become one of this run."""
    reason = ' '.join(str(error).split())[:LONGEST]
    earlier = [other for other in _steps(self.root) if other < step]
    or_earlier = (
      f'; if its files are damaged, remove {self.root / str(step)} to go on from step '
      f'{max(earlier)}'
      if earlier
      else ''
    )
    return journal.ResumeError(
      f'{self.root / str(step)}: cannot be restored ({reason}){or_earlier}; '
      '--config.checkpoint.on_change=restart starts anew'
    )

  def wait(self) -> None:
    """Waits until the last save is on disk."""
    with self._naming_a_full_disk():
      self.manager.wait_until_finished()

  @contextlib.contextmanager
  def _naming_a_full_disk(self) -> Iterator[None]:
    """Raises OSError for a full disk, which tensorstore says as another error."""
    try:
      yield
    except ValueError as error:
      for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):
          raise OSError(number, os.strerror(number), str(self.root)) from error
      raise

  @contextlib.contextmanager
  def finishing(self) -> Iterator[None]:
    """Finishes a save that is under way also where an error ends the steps.

    Whoever catches it and runs again, as in a notebook, finds no save half done that a
    thread still writes. Of several hosts, each ends at once: the others may be gone.
    """
    try:
      yield
    except BaseException:
      if jax.process_count() == 1:
        self.wait()
      raise

  def close(self) -> None:
    """Ends the threads that save."""
    self.manager.close()


def _steps(root: pathlib.Path) -> list[int]:
  """Returns the steps whose states are saved."""
  if not root.is_dir():
    return []
  return [int(path.name) for path in root.iterdir() if path.name.isdigit()]
