"""Traces a few steps; writes the programs that ran and what is in device memory.

<stage>/profile/plugins/profile/<time>/*.xplane.pb    xprof, TensorBoard
<stage>/profile/hlo/<program>.txt                     names every operation's scope
<stage>/profile/memory.pprof                          pprof
"""

import atexit
import collections
import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.settings.sections import ProfileConfig
from vlm_rlaif_jax.train import console


class Profiler:
  """Records the steps that the settings name.

  Args:
    folder: of the stage.
    programs: whose compiled text is written beside the trace; `batch` adds its own.
  """

  def __init__(
    self,
    settings: ProfileConfig,
    folder: pathlib.Path,
    programs: Iterable[sharding.Program],
  ):
    self.settings, self.folder = settings, folder / 'profile'
    self.programs = list(programs)
    self.on = self.has_traced = False
    self.batches = 0

  def before(self, step: int) -> None:
    """Starts the trace before its first step."""
    if step in self.settings.window and not self.on:
      self.folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self.folder))
      self.on = self.has_traced = True
      atexit.register(self.end)  # where an error or a request ends a stage before

  def after(self, step: int, results: Any) -> None:
    """Ends the trace after its last step, once the results are there."""
    if self.on and step + 1 not in self.settings.window:
      jax.block_until_ready(results)
      self.end()

  @contextlib.contextmanager
  def batch(self, program: sharding.Program) -> Iterator[None]:
    """Counts a batch as a step; the caller runs `program` inside and waits for it."""
    if program not in self.programs:
      self.programs.append(program)
    self.batches += 1
    self.before(self.batches)
    yield
    self.after(self.batches, None)

  def close(self) -> None:
    """Ends a trace that is still open; writes the programs if requested."""
    self.end()
    if self.settings.steps and not self.has_traced:
      console.say(
        f'  config.profile.steps={self.settings.steps}: none of these steps was taken, '
        'and nothing is recorded'
      )
    if self.settings.hlo:
      self._write(pathlib.Path(self.settings.hlo))

  def end(self) -> None:
    """Ends a trace if one is open, also before its last step."""
    if not self.on:
      return
    atexit.unregister(self.end)
    jax.profiler.stop_trace()
    self.on = False
    if self.settings.memory and hosts.is_first():
      jax.profiler.save_device_memory_profile(str(self.folder / 'memory.pprof'))
    self._write(self.folder / 'hlo')

  def _write(self, folder: pathlib.Path) -> None:
    if not hosts.is_first():
      return
    folder.mkdir(parents=True, exist_ok=True)
    numbers = collections.Counter()  # several programs may have one name
    for program in self.programs:
      for compiled in program.compiled():
        path = folder / f'{program.name}.{numbers[program.name]}.txt'
        path.write_text(compiled.as_text() or '')
        numbers[program.name] += 1
