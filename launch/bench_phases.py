"""The compiled phases of a stage on the devices that are here: planned, and run.

  python -m launch.bench phases --config configs/ppo.py:7b \
    --config.ppo.rollout_batch=32 --config.ppo.step_batch=16 --config.ppo.micro_batch=16

The programs are the stage's own, at its own sizes. Weights, videos and prompts are
random, so that no checkpoint is needed; all that a stage keeps on the devices from its
first step to its last is there, too. Per phase: seconds of the fastest round beside the
chip's least, and the most memory that was in use so far beside the plan's.
"""

import contextlib
import pathlib
import time
from typing import Any

from absl import flags

from launch import process, train
from vlm_rlaif_jax.config.build import UserError

_ONLY = flags.DEFINE_list('only', [], 'phases: these alone')
_TRACE = flags.DEFINE_string('trace', '', 'phases: folder for a trace of each')
COLUMNS = (
  f'{"phase":<18}{"floor s":>9}{"took s":>9}{"":>6}{"TFLOP/s":>9}'
  f'{"plan GB":>9}{"ran GB":>9}{"compiled in s":>15}'
)
VIDEO = -200  # `data.tokens.VIDEO`
TOP = 12  # rows of each table of a trace
GAP = 'sampler/logprob_gap'
POOL = 1 << 22  # random numbers, repeated: no kernel's time hangs on their values


def phases(rounds: int, each=None) -> dict:
  """Prints and returns seconds and bytes of every phase, planned and measured.

  Args:
    each: called with the name and the figures of a phase as soon as it has run.
  """
  process.start()
  import jax

  from vlm_rlaif_jax.core import chips, sharding
  from vlm_rlaif_jax.plan import fit, measure, show, targets
  from vlm_rlaif_jax.plan import phases as programs
  from vlm_rlaif_jax.train import trace

  settings: Any = train.settings_of_flags()
  process.writable_folder(_TRACE.value, '--trace')
  devices, loras = jax.devices(), train.loras(settings)
  kind = devices[0].device_kind
  target = targets.here(devices)
  mesh = sharding.make_mesh(settings.mesh, devices)
  fit.check(settings, devices, chips.memory(), loras)
  everything = programs.of(settings, mesh, loras)
  if unknown := set(_ONLY.value) - {phase.name for phase in everything}:
    known = ', '.join(phase.name for phase in everything)
    raise UserError(f'--only: {unknown.pop()!r} is none of {known}')
  print(f'{show.heading(target, mesh, settings.stage)}, fastest of {rounds} rounds')
  print(COLUMNS, flush=True)
  made, figures, executables = Made(settings.model.llama.vocab), {}, {}
  for place, phase in enumerate(everything):
    if _ONLY.value and phase.name not in _ONLY.value:
      continue
    clock = time.perf_counter()
    plan = measure.measure(phase, target, executables.__setitem__)
    compiled = time.perf_counter() - clock
    if plan.refused:
      print(f'{phase.name:<18}does not fit: {plan.advice}', flush=True)
      continue
    folder = _TRACE.value and pathlib.Path(_TRACE.value) / phase.name
    best, result = run(phase, executables.pop(phase.name), made, rounds, folder)
    for later in everything[place + 1 :]:
      made.put(result, later.arguments)
    peak = (devices[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
    figures[phase.name] = {
      'seconds': best,
      'times': phase.times,
      'flops': plan.flops,
      'floor': plan.floor,
      'floor_again': plan.floor_again,
      'planned_bytes': plan.total,
      'peak_bytes': peak,
      'compiled': compiled,
    }
    if each:
      each(phase.name, figures[phase.name])
    share = f'{plan.floor / best:.0%}' if plan.floor else ''
    print(
      f'{phase.name:<18}{plan.floor:9.3f}{best:9.3f}{share:>6}'
      f'{plan.flops / best / 1e12:9.1f}{plan.total / fit.GB:9.2f}{peak / fit.GB:9.2f}'
      f'{compiled:15.0f}',
      flush=True,
    )
    if phase.name == 'estimate':  # its second result are metrics
      gap = float(result[1][GAP])
      print(f'  {GAP}: {gap:.1e} nats a token, of these random weights')
      figures['estimate'][GAP] = gap
    jax.clear_caches()
  total = lambda name: sum(row['times'] * row[name] for row in figures.values())
  print(f'as often as they run: {total("seconds"):.2f} s, floor {total("floor"):.2f} s')
  for name in figures if _TRACE.value else ():
    summary = trace.lines(trace.read(pathlib.Path(_TRACE.value) / name), TOP)
    print('\n'.join([f'\ntrace of {name}', *summary]))
  return {'device': kind, 'jax': jax.__version__, 'phases': figures}


def run(phase, compiled, made: 'Made', rounds: int, folder=None) -> tuple[float, Any]:
  """Seconds of the fastest round, and the last round's result.

  Args:
    folder: for a trace of one more round; none without.
  """
  import jax

  if folder:
    (folder / 'hlo').mkdir(parents=True, exist_ok=True)
    (folder / f'hlo/{phase.program.name}.0.txt').write_text(compiled.as_text())
  made.keep_only((phase.resident, phase.arguments))
  seconds, result = [], None
  for number in range(rounds + bool(folder)):
    made.forget([phase.arguments[i] for i in phase.program.donate])
    result = None
    _, arguments = jax.block_until_ready(made.real((phase.resident, phase.arguments)))
    look = contextlib.nullcontext()
    if number == rounds:
      look = jax.profiler.trace(str(folder))
    clock = time.perf_counter()
    with look:
      result = jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - clock)
  return min(seconds[:rounds]), result


class Made:
  """Arrays for shapes; a shape that several phases name is one array, made once.

  Args:
    vocab: ids are below it.
  """

  def __init__(self, vocab: int):
    import numpy as np

    rng = np.random.default_rng(0)
    self._held: dict[int, tuple] = {}
    self._normal = 0.02 * rng.standard_normal(POOL, np.float32)
    self._bytes = rng.integers(0, 256, POOL, np.uint8)
    self._ids = rng.integers(3, vocab, POOL, np.int32)

  def real(self, tree):
    import jax

    def one(path, shape):
      if id(shape) not in self._held:
        value = self._value(jax.tree_util.keystr(path), shape)
        self._held[id(shape)] = shape, jax.device_put(value, shape.sharding)
      return self._held[id(shape)][1]

    return jax.tree_util.tree_map_with_path(one, tree)

  def put(self, result, arguments) -> None:
    """The result of a phase, where an argument is a tree of its kind."""
    import jax

    for tree in arguments:
      leaves, found = jax.tree.leaves(tree), jax.tree.leaves(result)
      same = jax.tree.structure(tree) == jax.tree.structure(result)
      if len(leaves) > 1 and same:
        for shape, array in zip(leaves, found, strict=True):
          self._held[id(shape)] = shape, array

  def forget(self, tree) -> None:
    import jax

    for shape in jax.tree.leaves(tree):
      self._held.pop(id(shape), None)

  def keep_only(self, tree) -> None:
    import jax

    kept = {id(shape) for shape in jax.tree.leaves(tree)}
    self._held = {key: value for key, value in self._held.items() if key in kept}

  def _value(self, name: str, shape):
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    dtype = np.dtype(shape.dtype)
    if 'opt_state' in name or (not shape.shape and dtype.kind in 'iu'):
      return np.zeros(shape.shape, dtype)
    if dtype.kind == 'b' or 'norm' in name:  # all is valid; norms are those of a start
      return np.ones(shape.shape, dtype)
    if dtype.kind == 'i':
      value = np.resize(self._ids, shape.shape)
      if name.endswith(('.ids', "['ids']")):
        value[..., 1] = VIDEO
      return value.astype(dtype)
    pool = self._bytes if dtype.kind == 'u' else self._normal.astype(dtype)
    return np.resize(pool, shape.shape)
