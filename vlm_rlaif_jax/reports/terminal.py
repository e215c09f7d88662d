"""What a run prints in the terminal: one line a stage, and a table at the end."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from vlm_rlaif_jax.reports import benchmark_table, repair_table
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.checks import bracket, percent
from vlm_rlaif_jax.settings.constants import WORLD_SIZES
from vlm_rlaif_jax.settings.eval import MODELS
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train.console import say
from vlm_rlaif_jax.weights import artifacts


def announce(settings: Run, runs: Sequence[Run], notes: Sequence[str] = ()) -> None:
  """Prints what is about to run, on which data and devices; then the notes."""
  data = settings.data.root or 'the built-in video world'
  full_size = f'Full size: --config configs/{settings.stage}.py:7b'
  if stages.of(settings).one_process:  # pretraining, which has one size and no data
    data = 'rendered pictures and texts'
    full_size = (
      'Full sizes start from released weights: python -m launch.convert --help'
    )
  devices = f'{jax.device_count()} {jax.devices()[0].platform} device(s)'
  say(f'{settings.stage}, size {settings.size}, data: {data}, {devices}')
  if settings.size in WORLD_SIZES:
    say(f'Running the {settings.size} demo configuration. {full_size}')
  if len(runs) > 1:
    say(f'Stages: {", ".join(run.stage for run in runs)}')
  for note in notes:
    say(f'note: {note}')


@contextlib.contextmanager
def stage(run: Run, place: str) -> Iterator[Callable[[dict], None]]:
  """Announces a stage; yields what prints its closing line from its summary."""
  say(f'[{place}] {run.stage} ...')
  clock = time.perf_counter()

  def report_done(summary: dict) -> None:
    seconds = time.perf_counter() - clock
    line = stages.of(run).summary_line(summary)
    say(f'[{place}] {run.stage}: {line} -> {summary["artifact"]} ({seconds:.0f} s)')
    if summary.get('skipped'):
      say(f'  {len(summary["skipped"])} bad samples skipped, see summary.json')

  yield report_done


def table(root: pathlib.Path, names: Sequence[str]) -> None:
  """Prints the numbers of a run that has just ended, if it evaluated anything."""
  if 'eval' not in names:
    return
  path = root / 'eval' / 'summary.json'
  summary = json.loads(path.read_text())
  for line in repair_table.lines(summary):
    say(line)
  if summary['questions']['qa']:
    _task_table(summary)
  for line in benchmark_table.lines(summary):
    say(line)
  for stage_name in ('label', 'reward', 'ppo'):
    done = artifacts.read_summary(root / stage_name)
    if done:
      say(f'{stage_name:<16}{stages.every()[stage_name].summary_line(done)}')
  say(f'Numbers: {path}')


def _task_table(summary: dict) -> None:
  """Prints the numbers of the tasks qa and describe, and the changes of accuracy."""
  columns = (
    ('QA accuracy', 'qa_accuracy'),
    ('hallucination', 'hallucination_rate'),
    ('fact recall', 'fact_recall'),
  )
  counts = summary['questions']
  say('')
  say(
    f'Split {summary["split"]}: {counts["qa"]} questions and {counts["describe"]} '
    f'descriptions, {summary["videos"]} videos'
  )
  say(f'{"held-out clips":<16}' + ''.join(f'{title:>24}' for title, _ in columns))
  for name in MODELS:
    if 'qa_accuracy' not in summary.get(name, {}):
      continue
    cells = []
    for _, field in columns:
      value = summary[name].get(field)
      cell = percent(value)
      if field == 'qa_accuracy':
        cell += f' {bracket(summary[name]["qa_interval"], percent)}'
      cells.append(f'{cell:>24}')
    say(f'{name:<16}' + ''.join(cells))
  for before, field in (('sft', 'qa_change'), ('init', 'qa_change_from_init')):
    if field in summary:
      interval = bracket(summary[f'{field}_interval'], '{:+.1%}'.format)
      say(
        f'QA change {before} -> rlaif {summary[field]:+.1%}, 95 % interval {interval}'
      )
