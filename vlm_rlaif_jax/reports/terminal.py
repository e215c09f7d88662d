"""What a run prints in the terminal: one line a stage, and a table at the end."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train.console import say
from vlm_rlaif_jax.weights import artifacts


def announce(settings: Run, jobs: Sequence[Run], notes: Sequence[str] = ()) -> None:
  """What is about to happen, before it does; what is to be noted, a line each."""
  where = settings.data.root or 'the built-in video world'
  if settings.stage == 'pretrain':
    where = 'stills and texts made as it goes'
  devices = f'{jax.device_count()} {jax.devices()[0].platform} device(s)'
  say(f'{settings.stage}, size {settings.size}, data: {where}, {devices}')
  if settings.size == 'tiny':
    real = f'The real one: --config configs/{settings.stage}.py:7b'
    if settings.stage == 'pretrain':
      real = 'Real sizes start from released weights: python -m launch.convert --help'
    say(f'This is the tiny size, for looking and testing. {real}')
  if len(jobs) > 1:
    say(f'Will run: {", ".join(job.stage for job in jobs)}')
  for note in notes:
    say(f'note: {note}')


@contextlib.contextmanager
def stage(job: Run, place: str) -> Iterator[Callable[[dict], None]]:
  """Announces a stage; the summary handed to the result becomes its closing line."""
  say(f'[{place}] {job.stage} ...')
  clock = time.perf_counter()

  def done(summary: dict) -> None:
    seconds = time.perf_counter() - clock
    said = _LINES[job.stage](summary)
    say(f'[{place}] {job.stage}: {said} -> {summary["artifact"]} ({seconds:.0f} s)')
    if summary.get('skipped'):
      say(f'  {len(summary["skipped"])} bad samples skipped, see summary.json')

  yield done


def _percent(value) -> str:
  return 'n/a' if value is None else f'{value:.1%}'


def _agreement(s: dict) -> str:
  """What is known about the judge: agreement with the truth, contexts, orders."""
  said = []
  if s.get('agreement_kept') is not None:
    said.append(f'labels agree with the truth on {_percent(s["agreement_kept"])}')
  if compared := s.get('compared'):
    said.append(
      f'on {compared["n"]} of them {_percent(compared["narrative"])} with the '
      f'narrative, {_percent(compared["none"])} without'
    )
  if s.get('order_agreement') is not None:
    said.append(f'the two orders agree on {_percent(s["order_agreement"])}')
  return ''.join(f'; {part}' for part in said)


_LINES: dict[str, Callable[[dict], str]] = {
  'pretrain': lambda s: (
    f'{s["parameters"]:,} parameters, {sum(s["steps"].values())} steps, '
    f'{s["pieces"]} pieces of vocabulary'
  ),
  'sft': lambda s: (
    f'{sum(s["samples"].values())} samples, {s["steps"]} steps, '
    f'{s["trainable"]:,} trained parameters'
  ),
  'label': lambda s: f'{s["pairs"]} pairs of {s["questions"]} questions{_agreement(s)}',
  'reward': lambda s: (
    f'{s["pairs"]} pairs, {s["steps"]} steps, accuracy on {s["held_out"]} held-out '
    f'pairs {s["accuracy"]:.1%} (without the video '
    f'{s["accuracy_without_video"]:.1%})'
  ),
  'init': lambda s: f'{s["samples"]} samples, {s["steps"]} steps',
  'ppo': lambda s: (
    f'{s["iterations"]} iterations, held-out reward {s["reward_before"]:.2f} -> '
    f'{s["reward_after"]:.2f}'
  ),
  'eval': lambda s: ', '.join(
    f'{name} QA {s[name]["qa_accuracy"]:.1%}'
    for name in ('base', 'sft', 'init', 'rlaif')
    if name in s
  ),
}


def table(root: pathlib.Path, stages: Sequence[str]) -> None:
  """The numbers of the run that has just ended, where it evaluated anything."""
  if 'eval' not in stages:
    return
  path = root / 'eval' / 'summary.json'
  summary = json.loads(path.read_text())
  columns = (
    ('QA accuracy', 'qa_accuracy'),
    ('hallucination', 'hallucination_rate'),
    ('fact recall', 'fact_recall'),
  )
  say('')
  say(f'{"held-out clips":<16}' + ''.join(f'{title:>24}' for title, _ in columns))
  for name in ('base', 'sft', 'init', 'rlaif'):
    if name not in summary:
      continue
    cells = []
    for _, field in columns:
      value = summary[name].get(field)
      cell = _percent(value)
      if field == 'qa_accuracy':
        low, high = summary[name]['qa_interval']
        cell += f' [{low:.1%}, {high:.1%}]'
      cells.append(f'{cell:>24}')
    say(f'{name:<16}' + ''.join(cells))
  if 'qa_change' in summary:
    low, high = summary['qa_change_interval']
    say(
      f'QA change sft -> rlaif {summary["qa_change"]:+.1%}, 95 % interval '
      f'[{low:+.1%}, {high:+.1%}]'
    )
  for stage_name in ('label', 'reward', 'ppo'):
    known = artifacts.read_summary(root / stage_name)
    if known:
      say(f'{stage_name:<16}{_LINES[stage_name](known)}')
  say(f'Numbers: {path}')
