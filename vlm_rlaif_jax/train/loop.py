"""The loop around a step: progress, metrics, checkpoints, interruption."""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import tqdm

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.sections import LogConfig
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.metrics import Compilations, Metrics, check_finite
from vlm_rlaif_jax.train.profiling.flops import Meter
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.state import TrainState


class Interrupted(KeyboardInterrupt):
  """Ctrl-C or SIGTERM between two steps; the state has been saved."""


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
  """Turns the first Ctrl-C or SIGTERM into a question that the loop asks itself."""
  asked = False
  previous = {}

  def ask(number, frame):
    nonlocal asked
    asked = True
    signal.signal(number, previous[number])  # the second one is not caught

  with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
    for number in (signal.SIGINT, signal.SIGTERM):
      previous[number] = signal.getsignal(number)
      signal.signal(number, ask)
  try:
    yield lambda: asked
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def progress(
  items: Iterable, total: int, title: str, log: LogConfig, unit='step', initial=0
):
  """A bar with rate and time left, on the first host and where somebody looks."""
  return tqdm.tqdm(
    items,
    total=total,
    initial=initial,
    desc=title,
    unit=unit,
    disable=not log.progress or not hosts.is_first(),
    mininterval=0.5 if sys.stderr.isatty() else 10.0,
    dynamic_ncols=True,
  )


def fit(
  step: Callable[[TrainState, dict], tuple[TrainState, dict]],
  state: TrainState,
  batches: Callable[[int], Iterable[dict]],
  total: int,
  *,
  title: str,
  folder: pathlib.Path,
  checkpointer: Checkpointer,
  log: LogConfig,
  evaluate: Callable[[TrainState], dict] | None = None,
  evaluate_every: int = 0,
  profiler: Profiler | None = None,
  work: Callable[[dict], tuple[float, float, float]] | None = None,
  prepare: Callable[[TrainState, int], None] | None = None,
) -> TrainState:
  """Runs `total` steps, from wherever the last checkpoint left off.

  Args:
    step: jitted; donates its first argument.
    batches: first step -> the batches from there on; a pure function of the step, so
      that a resumed run sees the data that it would have seen.
    evaluate: extra metrics every `evaluate_every` steps and after the last one.
    work: positions, operations and those of recomputation in a batch, for the meter.
    prepare: called with the state and the steps that are done, before the first step:
      what is compiled there is in no rate.
  """
  restored = checkpointer.restore(state)
  if restored is not None:
    state = restored[0]
  start = int(state.step)
  metrics = Metrics(folder, log.tensorboard, start)
  compilations = Compilations()
  if prepare:
    prepare(state, start)
  pending: list[tuple[int, dict]] = []
  clock = time.perf_counter()
  meter = Meter()

  def flush() -> dict[str, float]:
    """Reads what the device has computed since; every step is checked, one is kept."""
    nonlocal clock
    if not pending:
      return {}
    for number, values in pending:
      check_finite(number, {name: float(value) for name, value in values.items()})
    number, values = pending[-1]
    now = time.perf_counter()
    rate = len(pending) / max(now - clock, 1e-9)
    rates = meter.rates(max(now - clock, 1e-9)) if work else {}
    counted = {'steps_per_second': rate, **rates, 'compilations': compilations.count}
    row = metrics.write(number, {**values, **counted})
    clock = now
    pending.clear()
    return row

  with stop_requests() as stop_asked:
    bar = progress(batches(start), total, title, log, initial=start)
    for number, batch in enumerate(bar, start + 1):
      if profiler:
        profiler.before(number)
      state, values = step(state, batch)
      if profiler:
        profiler.after(number, values)
      if work:
        meter.add(*work(batch))
      pending.append((number, values))
      if number % log.every == 0 or number == total:
        row = flush()
        bar.set_postfix_str(f'loss {row.get("loss", float("nan")):.4f}')
      if evaluate and (
        number == total or (evaluate_every and number % evaluate_every == 0)
      ):
        flush()
        metrics.write(number, evaluate(state))
        clock = time.perf_counter()
      if number % checkpointer.settings.every == 0 and number < total:
        flush()  # never save a state that went bad
        checkpointer.save(state)
      # Hosts wait for each other's say, so they ask where they wait anyway.
      asking = jax.process_count() == 1 or number % log.every == 0
      if asking and hosts.any_host(stop_asked()):
        flush()
        checkpointer.save(state)
        checkpointer.wait()
        raise Interrupted(f'{title}: saved at step {number} of {total}')
    bar.close()
  if profiler:
    profiler.close()
  flush()
  checkpointer.save(state)
  checkpointer.wait()
  metrics.close()
  compilations.close()
  return state
