"""The compiled phases of a stage on the devices of this host: planned, and run.

  python -m launch.bench phases --config configs/ppo.py:7b \
    --config.ppo.rollout_batch=32 --config.ppo.step_batch=16 --config.ppo.micro_batch=16

The programs are the stage's own, at its own sizes. Weights, videos and prompts are
random, so no checkpoint is needed; everything that a stage keeps on the devices from
its first step to its last is on them, too. Printed per phase: seconds of the roofline
and of the fastest round, the planned memory and the most that was in use so far.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from launch import jobs, process, train
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import VIDEO

_ONLY = flags.DEFINE_list(
  'only', [], 'phases, gpu: run only these phases or items, by name.'
)
_TRACE = flags.DEFINE_string(
  'trace', '', 'phases: write a trace of each to this folder.'
)
COLUMNS = (
  f'{"phase":<18}{"floor s":>9}{"took s":>9}{"":>6}{"TFLOP/s":>9}'
  f'{"plan GB":>9}{"ran GB":>9}{"compiled in s":>15}'
)
TOP = 12  # rows of each table of a trace
GAP = 'sampler/logprob_gap'
POOL = 1 << 22  # random numbers, repeated: no kernel's time hangs on their values


def phases(
  rounds: int, on_phase: Callable[[str, dict[str, Any]], None] | None = None
) -> dict:
  """Prints and returns seconds and bytes of every phase, planned and measured.

  Args:
    on_phase: called with the name and the figures of each phase after it has run.
  """
  process.start()
  import jax

  from vlm_rlaif_jax.core import chips, sharding
  from vlm_rlaif_jax.plan import fit, measure, show, targets
  from vlm_rlaif_jax.plan import phases as programs

  settings: Any = train.settings_of_flags()
  process.writable_folder(_TRACE.value, '--trace')
  devices, loras = jax.devices(), jobs.loras(settings)
  target = targets.here(devices)
  mesh = sharding.make_mesh(settings.mesh, devices)
  fit.check(settings, devices, chips.memory(), loras)
  everything = programs.of(settings, mesh, loras)
  _check_only([phase.name for phase in everything])
  print(f'{show.heading(target, mesh, settings.stage)}, fastest of {rounds} rounds')
  print(COLUMNS, flush=True)
  arrays = RandomArrays(settings.model.llama.vocab)
  figures, executables, absent = {}, {}, []
  for place, phase in enumerate(everything):
    if _ONLY.value and phase.name not in _ONLY.value:
      absent.append(phase)
      continue
    # Plan: compiling gives the numbers and the executable.
    start = time.perf_counter()
    plan = measure.measure(phase, target, executables.__setitem__)
    compile_seconds = time.perf_counter() - start
    if plan.compiler_error:
      print(f'{phase.name:<18}does not fit: {plan.advice}', flush=True)
      absent.append(phase)
      continue
    # Run: later phases take what this one returns.
    folder = pathlib.Path(_TRACE.value) / phase.name if _TRACE.value else None
    best, result = run(phase, executables.pop(phase.name), arrays, rounds, folder)
    for later in everything[place + 1 :]:
      arrays.put(result, later.arguments)
    peak = (devices[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
    # Report
    measured = {'seconds': best, 'peak_bytes': peak, 'compile_s': compile_seconds}
    figures[phase.name] = {
      'times': phase.times,
      'flops': plan.flops,
      'roofline_s': plan.roofline_s,
      'roofline_s_with_remat': plan.roofline_s_with_remat,
      'planned_bytes': plan.total,
      **measured,
    }
    if on_phase:
      on_phase(phase.name, figures[phase.name])
    _print_row(phase.name, figures[phase.name])
    if phase.name == 'estimate':  # its second result are metrics
      gap = float(result[1][GAP])
      print(f'  {GAP}: {gap:.1e} nats a token, of these random weights')
      figures['estimate'][GAP] = gap
    jax.clear_caches()
  _print_totals(figures, [phase.name for phase in absent if phase.times])
  return {
    'device': devices[0].device_kind,
    'jax': jax.__version__,
    'phases': figures,
  }


def _check_only(names: list[str]) -> None:
  """Raises UserError where `--only` names no phase."""
  if unknown := set(_ONLY.value) - set(names):
    raise UserError(f'--only: {unknown.pop()!r} is none of {", ".join(names)}')


def _print_row(name: str, row: dict[str, Any]) -> None:
  """Prints what a phase was planned to take, and took."""
  floor, best = row['roofline_s'], row['seconds']
  share = f'{floor / best:.0%}' if floor else ''
  planned, peak = row['planned_bytes'] / 1e9, row['peak_bytes'] / 1e9
  print(
    f'{name:<18}{floor:9.3f}{best:9.3f}{share:>6}{row["flops"] / best / 1e12:9.1f}'
    f'{planned:9.2f}{peak:9.2f}{row["compile_s"]:15.0f}',
    flush=True,
  )


def _print_totals(figures: dict, absent: list[str]) -> None:
  """Prints what the phases take together.

  Args:
    absent: phases that did not run, so that the sums are not of the stage.
  """
  from vlm_rlaif_jax.train.profiling import trace

  def total(name: str) -> float:
    return sum(row['times'] * row[name] for row in figures.values())

  print(
    'each as often as the stage runs it: '
    f'{total("seconds"):.2f} s, floor {total("roofline_s"):.2f} s'
    f'{", without " if absent else ""}{", ".join(absent)}'
  )
  for name in figures if _TRACE.value else ():
    summary = trace.lines(trace.read(pathlib.Path(_TRACE.value) / name), TOP)
    print('\n'.join([f'\ntrace of {name}', *summary]))


def run(
  phase: Any,
  compiled: Any,
  arrays: 'RandomArrays',
  rounds: int,
  folder: pathlib.Path | None = None,
) -> tuple[float, Any]:
  """Returns the seconds of the fastest round, and the last round's result.

  Args:
    phase: a `plan.phase.Phase`; compiled: its executable.
    arrays: where its arguments come from; donated ones are made again every round.
    folder: for a trace of one more round; None for no trace.
  """
  import jax

  if folder:
    (folder / 'hlo').mkdir(parents=True, exist_ok=True)
    (folder / f'hlo/{phase.program.name}.0.txt').write_text(compiled.as_text())
  arrays.keep_only((phase.resident, phase.arguments))
  seconds, result = [], None
  for number in range(rounds + bool(folder)):
    arrays.forget([phase.arguments[i] for i in phase.program.donate])
    result = None
    _, arguments = jax.block_until_ready(
      arrays.of_shapes((phase.resident, phase.arguments))
    )
    tracing = contextlib.nullcontext()
    if number == rounds:
      tracing = jax.profiler.trace(str(folder))
    start = time.perf_counter()
    with tracing:
      result = jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - start)
  return min(seconds[:rounds]), result


class RandomArrays:
  """Makes an array for every shape; a shape that several phases name is one array.

  Two weights may have equal shapes and shardings, so a shape is known by its identity,
  and kept beside its array so that no other object takes it.

  Args:
    vocab: size of the vocabulary; ids are below it.
  """

  def __init__(self, vocab: int):
    import numpy as np

    rng = np.random.default_rng(0)
    self._arrays: dict[int, tuple] = {}
    self._normal = 0.02 * rng.standard_normal(POOL, np.float32)
    self._bytes = rng.integers(0, 256, POOL, np.uint8)
    self._ids = rng.integers(3, vocab, POOL, np.int32)

  def of_shapes(self, tree: Any) -> Any:
    """Returns the tree with an array for every shape."""
    import jax

    def one(path, shape):
      if id(shape) not in self._arrays:
        value = self._value(jax.tree_util.keystr(path), shape)
        self._arrays[id(shape)] = shape, jax.device_put(value, shape.sharding)
      return self._arrays[id(shape)][1]

    return jax.tree_util.tree_map_with_path(one, tree)

  def put(self, result: Any, arguments: Any) -> None:
    """Makes a phase's result the argument of later phases, where structures agree."""
    import jax

    for tree in arguments:
      shapes, values = jax.tree.leaves(tree), jax.tree.leaves(result)
      same = jax.tree.structure(tree) == jax.tree.structure(result)
      if len(shapes) > 1 and same:
        for shape, array in zip(shapes, values, strict=True):
          self._arrays[id(shape)] = shape, array

  def forget(self, tree: Any) -> None:
    """Drops the arrays of these shapes: a program consumed them."""
    import jax

    for shape in jax.tree.leaves(tree):
      self._arrays.pop(id(shape), None)

  def keep_only(self, tree: Any) -> None:
    """Drops all other arrays, so that memory is that of one phase."""
    import jax

    keys = {id(shape) for shape in jax.tree.leaves(tree)}
    self._arrays = {key: value for key, value in self._arrays.items() if key in keys}

  def _value(self, name: str, shape: Any) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    dtype = np.dtype(shape.dtype)
    if 'opt_state' in name or (not shape.shape and dtype.kind in 'iu'):
      return np.zeros(shape.shape, dtype)
    if dtype.kind == 'b' or 'norm' in name:  # all valid; norms as initialized
      return np.ones(shape.shape, dtype)
    if dtype.kind == 'i':
      value = np.resize(self._ids, shape.shape)
      if name.endswith(('.ids', "['ids']")):
        value[..., 1] = VIDEO
      return value.astype(dtype)
    pool = self._bytes if dtype.kind == 'u' else self._normal.astype(dtype)
    return np.resize(pool, shape.shape)
