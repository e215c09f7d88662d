"""Rehearses the whole method at its real size, before a week of a cluster is paid for.

  python -m launch.rehearse --config configs/ppo.py                    # tiny, on a CPU
  python -m launch.rehearse --config configs/ppo.py:7b,layout=a100x8
  python -m launch.rehearse --config configs/ppo.py:7b,layout=h100x8 \
    --config.ppo.rollout_batch=32 --config.ppo.step_batch=16     # one card's share

SFT, labels, reward model, initialization, PPO and evaluation run one after another with
the programs, layout and sizes of the real run, for a few steps each, on random weights
(no checkpoint is read) and a few clips of the built-in world. Checked are: every metric
is finite, sampler and trainer agree, the last iteration of PPO comes out of the
checkpoint before it to the same bits, and the most memory in use is what was planned.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from configs import layouts
from launch import jobs, process, train
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.stage import RANDOM, Run

ITERATIONS = 2  # of PPO: the last is computed again from the first's checkpoint
TOLERANCE = 0.03  # of planned memory
NO_STEPS = ('label', 'eval')  # stages without metrics

# What makes a run short, by section; sections and fields that a stage lacks are left
# out. Labels of random weights decide nothing, so all pairs are kept and no gate asks.
SHORT: dict[str, dict[str, Any]] = {
  # With 'restart', a run that is there starts anew: nothing would be resumed.
  'checkpoint': {'every': 1, 'keep': 3, 'on_change': 'stop'},
  'data': {'root': '', 'train': '', 'holdout': 0.4, 'max_samples': 24},
  'eval': {'models': ('sft', 'rlaif'), 'benchmarks': ('qa', 'describe'), 'clips': 2},
  'gate': {'override': True},
  'label': {'compare': 0, 'inconsistent': 'keep', 'ties': 'keep', 'min_margin': 0.0},
  'log': {'every': 1, 'tensorboard': False},
  'ppo': {'iterations': ITERATIONS, 'eval_prompts': 1, 'eval_every': ITERATIONS},
  'world': {'sft': 8, 'preference': 8, 'rl': 8, 'test': 4},
}


class RehearsalError(UserError):
  """A check of the rehearsal that failed."""


@process.one_line_errors
def main(argv: list[str]) -> None:
  process.reject_arguments(argv)
  settings = train.settings_of_flags()
  workdir = pathlib.Path(flags.FLAGS.workdir) / 'rehearsal'
  rehearse(short(settings), workdir)


def short(run: Run) -> Run:
  """Returns a run of a few steps on random weights; its programs stay as they are."""
  changes: dict[str, Any] = {'base': RANDOM}
  if getattr(run, 'critic_size', run.size) != run.size:
    changes['critic_base'] = RANDOM
  for section, values in SHORT.items():
    current = getattr(run, section, None)
    if current is None:
      continue
    names = {field.name for field in dataclasses.fields(current)}
    fields = {name: value for name, value in values.items() if name in names}
    changes[section] = dataclasses.replace(current, **fields)
  return dataclasses.replace(run, **changes)


def rehearse(settings: Run, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Runs all stages for a few steps, checks them, and prints a line for each.

  Returns:
    one record a stage: its name, seconds, planned and used bytes of one device.

  Raises:
    RehearsalError: names the check that failed, with what was expected and found.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  runs, _ = jobs.resolve_jobs(settings, workdir, make_all=True)
  runs[:] = [
    run if run is settings else short(layouts.apply(run, _layout())) for run in runs
  ]
  process.start()
  import jax

  from vlm_rlaif_jax.core import chips
  from vlm_rlaif_jax.plan import fit
  from vlm_rlaif_jax.stages import run as run_stage
  from vlm_rlaif_jax.train.console import say

  devices = jax.devices()
  for run in runs:
    fit.check(run, devices, chips.memory(), jobs.loras(run))
  names = ', '.join(f'{run.stage} {run.size}' for run in runs)
  say(f'rehearsing on {len(devices)} x {devices[0].device_kind}: {names}')
  records = []
  for run in runs:
    start = time.perf_counter()
    run_stage(run, workdir)
    seconds = time.perf_counter() - start
    folder = workdir / run.size / run.stage
    steps = _check_metrics(run.stage, folder)
    record = {
      'stage': run.stage,
      'size': run.size,
      'seconds': seconds,
      'steps': steps,
      **_memory(run, devices),
    }
    if run.stage == 'ppo':
      record['resumed'] = _check_resumed(run, workdir, folder)
    records.append(record)
    say(_line(record))
  _check_memory(records)
  path = workdir / 'rehearsal.json'
  path.write_text(json.dumps(records, indent=1) + '\n')
  say(f'all checks passed; {path}')
  return records


def _layout() -> str:
  """Returns the layout that `--config FILE:...,layout=NAME` names, or ''."""
  file = str(config_flags.get_config_filename(flags.FLAGS['config']))
  options = file.partition(':')[2].split(',')
  names = [x.removeprefix('layout=') for x in options if x.startswith('layout=')]
  return names[-1] if names else ''


def _check_metrics(stage: str, folder: pathlib.Path) -> int:
  """Returns how many rows of metrics a stage wrote; all of them are finite.

  `train.metrics` refuses others as they are written, so this sees that there are any.
  """
  if stage in NO_STEPS:
    return 0
  from vlm_rlaif_jax.train import metrics

  path = folder / 'metrics.jsonl'
  rows = metrics.read(path)
  if not rows:
    raise RehearsalError(f'{path}: no metrics, expected a row a step')
  return len(rows)


def _check_resumed(run: Run, workdir: pathlib.Path, folder: pathlib.Path) -> bool:
  """Computes the last iteration of PPO once more, from the checkpoint before it.

  Raises:
    RehearsalError: the adapter is another, or the iterations before were computed again
      as well, which says nothing of checkpoints.
  """
  from vlm_rlaif_jax.core import hosts
  from vlm_rlaif_jax.stages import run as run_stage
  from vlm_rlaif_jax.weights import artifacts

  before = json.loads((folder / 'summary.json').read_text())
  first, last = (
    folder / 'checkpoints' / str(number) for number in (ITERATIONS - 1, ITERATIONS)
  )
  for path in (first, last):
    if not path.is_dir():
      raise RehearsalError(f'{path}: no checkpoint of iteration {path.name}')
  written = _written(first)
  hosts.barrier(f'looked at {folder}')
  if hosts.is_first():
    shutil.rmtree(last)
  artifacts.drop_summary(folder)
  hosts.barrier(f'removed {last}')
  after = run_stage(run, workdir)
  if _written(first) != written:
    raise RehearsalError(
      f'{first}: PPO wrote it again; expected it to be read, and iteration '
      f'{ITERATIONS} alone to be computed'
    )
  for name in ('adapter', 'fingerprint'):
    if before[name] != after[name]:
      raise RehearsalError(
        f'{folder}: resumed from iteration {ITERATIONS - 1}, {name} is {after[name]}; '
        f'expected {before[name]}, as without a stop'
      )
  return True


def _written(folder: pathlib.Path) -> dict[str, int]:
  """Returns when each file of a folder was written, in nanoseconds."""
  return {
    str(path.relative_to(folder)): path.stat().st_mtime_ns
    for path in folder.rglob('*')
    if path.is_file()
  }


def _memory(run: Run, devices: list) -> dict[str, Any]:
  """Returns planned and used bytes of a device; used: the most of any since the start.

  The plan compiles the stage's programs again, from the cache on disk where there is
  one. A CPU does not count bytes, and is not planned.
  """
  import jax

  from vlm_rlaif_jax.core import sharding
  from vlm_rlaif_jax.plan import measure, phases, targets

  statistics = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [one['peak_bytes_in_use'] for one in statistics if 'peak_bytes_in_use' in one]
  if len(peaks) < len(statistics):
    return {'planned_bytes': None, 'used_bytes': None}
  jax.clear_caches()
  mesh = sharding.make_mesh(run.mesh, devices)
  target = targets.here(devices)
  planned = [
    measure.measure(phase, target).total
    for phase in phases.of(run, mesh, jobs.loras(run))
  ]
  return {'planned_bytes': max(planned, default=0), 'used_bytes': max(peaks)}


def _check_memory(records: list[dict[str, Any]]) -> None:
  """Raises RehearsalError where more was in use than any stage so far had planned."""
  most = 0.0
  for record in records:
    if record['used_bytes'] is None:
      return
    most = max(most, record['planned_bytes'])
    if record['used_bytes'] > (1 + TOLERANCE) * most:
      raise RehearsalError(
        f'{record["stage"]} {record["size"]}: {record["used_bytes"] / 1e9:.2f} GB of a '
        f'device were in use, planned were {most / 1e9:.2f} GB'
      )


def _line(record: dict[str, Any]) -> str:
  used, planned = record['used_bytes'], record['planned_bytes']
  memory = 'memory not counted on this device'
  if used is not None:
    memory = f'{used / 1e9:.2f} GB in use so far, {planned / 1e9:.2f} planned'
  resumed = ', resumed to the same bits' if record.get('resumed') else ''
  return (
    f'{record["stage"]:<8}{record["size"]:<6}{record["seconds"]:7.1f} s, '
    f'{record["steps"]} steps, {memory}{resumed}'
  )


if __name__ == '__main__':
  process.prepare()
  process.run(main)
