"""Runs the steps of a stage: progress, metrics, checkpoints, interruption."""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import tqdm

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.sections import CheckpointConfig, LogConfig
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.journal import ResumeError
from vlm_rlaif_jax.train.metrics import Compilations, Metrics, check_finite
from vlm_rlaif_jax.train.profiling.flops import Meter
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.sinks import Media
from vlm_rlaif_jax.train.state import TrainState


class Interrupted(KeyboardInterrupt):
  """Ctrl-C or SIGTERM between two steps; the state has been saved.

  Args:
    progress: what has been saved, and of how much.
    settings: of the run, which decide whether its command goes on from there.
  """

  def __init__(self, progress: str, settings: CheckpointConfig):
    without = ' without on_change=restart' if settings.on_change == 'restart' else ''
    super().__init__(f'{progress}; the same command{without} resumes from there')


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
  """Catches the first Ctrl-C or SIGTERM; yields a function that says if it came."""
  requested = False
  previous = {}

  def request(number: int, frame: Any) -> None:
    nonlocal requested
    requested = True
    signal.signal(number, previous[number])  # the second one is not caught

  with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
    for number in (signal.SIGINT, signal.SIGTERM):
      previous[number] = signal.getsignal(number)
      signal.signal(number, request)
  try:
    yield lambda: requested
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def progress(
  items: Iterable,
  total: int,
  title: str,
  log: LogConfig,
  unit: str = 'step',
  initial: int = 0,
) -> tqdm.tqdm:
  """Returns the items behind a bar with rate and time left, on the first host."""
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


def bar(title: str, log: LogConfig, unit: str) -> Callable[[Iterable, int], tqdm.tqdm]:
  """Returns what puts items, given with their number, behind a bar of this title."""
  return lambda items, total: progress(items, total, title, log, unit)


def _loss_text(row: dict[str, float]) -> str:
  """Returns what the bar of a supervised stage shows."""
  return f'loss {row.get("loss", float("nan")):.4f}'


class StepRows:
  """Collects the metrics of steps and writes some of them as rows.

  Reading a metric waits for the devices, so steps are kept until a row is due.

  Args:
    folder: of the stage.
    start: finished steps of the run.
    counts_work: whether rows have rates of tokens and operations.
    settings: of the run, for W&B.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    log: LogConfig,
    start: int,
    counts_work: bool,
    settings: Mapping[str, Any] | None = None,
  ):
    self.metrics = Metrics(folder, log, start, settings)
    self.compilations = Compilations()
    self.counts_work = counts_work
    self.meter = Meter()
    self.pending: list[tuple[int, dict]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves the time since the last row out of the next one."""
    self.clock = time.perf_counter()

  def flush(self) -> dict[str, float]:
    """Checks the metrics of every pending step; writes and returns those of the last.

    Raises:
      NonFiniteError: a metric of one of them is NaN or infinite.
    """
    if not self.pending:
      return {}
    for number, values in self.pending:
      check_finite(number, {name: float(value) for name, value in values.items()})
    number, values = self.pending[-1]
    seconds = max(time.perf_counter() - self.clock, 1e-9)
    rates = {
      'steps_per_second': len(self.pending) / seconds,
      'seconds': seconds / len(self.pending),
      **(self.meter.rates(seconds) if self.counts_work else {}),
      'compilations': self.compilations.count,
    }
    row = self.metrics.write(number, {**values, **rates})
    self.pending.clear()
    self.restart_clock()
    return row

  def write(
    self, number: int, values: dict, media: Callable[[], Media] | None = None
  ) -> None:
    """Writes a row of an evaluation, and its media; their time is in no rate."""
    self.metrics.write(number, values)
    if media:
      self.metrics.write_media(number, media)
    self.restart_clock()

  def settle(self) -> dict[str, float]:
    """Does what `flush` does, and has all rows on disk, before a state is saved."""
    row = self.flush()
    self.metrics.flush()
    return row

  def close(self) -> None:
    """Writes what is pending, and closes the files."""
    self.flush()
    self.metrics.close()
    self.compilations.close()


@contextlib.contextmanager
def _closing_early(rows: StepRows, profiler: Profiler | None) -> Iterator[None]:
  """Writes the trace and the rows that there are where an error ends the steps."""
  try:
    yield
  except BaseException:
    with contextlib.suppress(Exception):  # the error that ended them is the one to show
      rows.metrics.flush()
      if profiler:
        profiler.end()
    raise


def fit(
  step: Callable[[TrainState, Any], tuple[TrainState, dict]],
  state: TrainState,
  batches: Callable[[int], Iterable[Any]],
  total: int,
  *,
  title: str,
  folder: pathlib.Path,
  checkpointer: Checkpointer,
  log: LogConfig,
  evaluate: Callable[[TrainState], dict] | None = None,
  evaluate_every: int = 0,
  evaluate_first: bool = False,
  media: Callable[[], Media] | None = None,
  profiler: Profiler | None = None,
  work: Callable[[Any], tuple[float, float, float]] | None = None,
  prepare: Callable[[TrainState, int], None] | None = None,
  extra: dict | None = None,
  has_ended: Callable[[], bool] | None = None,
  saved: Callable[[], None] | None = None,
  row_every: int = 0,
  unit: str = 'step',
  status: Callable[[dict[str, float]], str] = _loss_text,
) -> TrainState:
  """Runs `total` steps, from wherever the last checkpoint ended.

  A step may be an optimizer step on a batch, or an iteration of reinforcement learning
  that samples, scores and updates.

  Args:
    step: (state, batch) -> (state, metrics); may donate the state.
    batches: first step -> the batches from there on; a pure function of the step, so
      that a resumed run reads the data that it would have read.
    evaluate: returns further metrics of a state; called every `evaluate_every` steps
      and after the last one, and before the first one if `evaluate_first`.
    media: returns texts, pictures and histograms of the last evaluation.
    work: positions, operations and those of recomputation in a batch, for rates.
    prepare: called with the state and the number of finished steps before the first
      step, so that what it compiles is in no rate.
    extra: saved with every checkpoint, and filled from the one that is restored; steps
      and evaluation may change it.
    has_ended: returns whether the step that was just taken is the last, before `total`;
      then no batch follows it.
    saved: called when a state has been given to the checkpointer; the one before it is
      on disk by then.
    row_every: steps between rows of metrics; 0: `log.every`.
    unit: of a step, for the bar and messages.
    status: row of metrics -> what the bar shows.

  Returns:
    the state after the last step.

  Raises:
    Interrupted: Ctrl-C or SIGTERM; the state has been saved.
    ResumeError: the checkpoint is of more steps than the run has.
  """
  extra = {} if extra is None else extra
  row_every = row_every or log.every

  # Start: from the last checkpoint, if there is one.
  restored = checkpointer.restore(state)
  if restored is not None:
    state = restored[0]
    extra.update(restored[1])
  start = int(state.step)
  if start > total:  # with on_change=ignore
    raise ResumeError(
      f'{checkpointer.root}: has {start} {unit}s, the run has {total}: what it leaves '
      'would be of more than it says; --config.checkpoint.on_change=restart starts anew'
    )
  rows = StepRows(folder, log, start, work is not None, checkpointer.identity)
  if prepare:
    prepare(state, start)
  if evaluate and evaluate_first and start == 0:
    rows.write(0, evaluate(state), media)
  rows.restart_clock()

  closing = _closing_early(rows, profiler)
  with checkpointer.finishing(), closing, stop_requests() as stop_requested:
    bar = progress(batches(start), total, title, log, unit, start)
    for number, batch in enumerate(bar, start + 1):
      # Step
      if profiler:
        profiler.before(number)
      state, values = step(state, batch)
      if profiler:
        profiler.after(number, values)
      if work:
        rows.meter.add(*work(batch))
      if rows.pending:  # no more than two steps, and their batches, are on the devices
        jax.block_until_ready(rows.pending[-1][1])
      rows.pending.append((number, values))

      # Metrics and evaluation
      last = number == total or bool(has_ended and has_ended())
      if number % row_every == 0 or last:
        bar.set_postfix_str(status(rows.flush()))
      due = evaluate_every and number % evaluate_every == 0
      if evaluate and (due or last):
        rows.flush()
        rows.write(number, evaluate(state), media)

      # Checkpoint; also where the run is to stop, which hosts decide together, and so
      # only where they wait for each other anyway.
      decides = jax.process_count() == 1 or number % row_every == 0
      stopping = not last and decides and hosts.any_host(stop_requested())
      due = number % checkpointer.settings.every == 0
      if last or due or stopping:
        rows.settle()  # a state that went bad is never saved
        checkpointer.save(state, extra)
        if saved:
          saved()
        rows.restart_clock()
      if stopping:
        checkpointer.wait()
        raise Interrupted(
          f'{title}: saved at {unit} {number} of {total}', checkpointer.settings
        )
    bar.close()

  # End
  if profiler:
    profiler.close()
  rows.close()
  checkpointer.save(state, extra)  # where there was no step to take
  checkpointer.wait()
  return state
