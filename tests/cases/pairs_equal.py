"""Preference pairs whose two answers are the same text say nothing about a model.

Both answers get the same score. If a tie counted as "the second is better", accuracy
would depend on which answer the file prefers, although nobody could tell, and that
number decides whether PPO starts. Right: the accuracy is the same whatever the file
prefers (ties count one half, or such pairs are left out), or the pairs are refused.

Half of the pairs have equal answers and half have different ones.

  python -m tests.cases.pairs_equal OUT
"""

import json
import pathlib
import shutil
import subprocess

from tests.cases import clips, commands

PAIRS = 48


def make(out: pathlib.Path) -> None:
  """Writes clips and two data files, which differ where the answers are equal."""
  (out / 'clips').mkdir(exist_ok=True)
  rows = []
  for i in range(PAIRS):
    clips.encode(out / 'clips' / f'{i}.mp4', 24 + i, *clips.H264)
    right = {'from': 'gpt', 'value': 'The blue square moves right.'}
    left = {'from': 'gpt', 'value': 'The blue square moves left.'}
    row = {'id': f'pair-{i}', 'video': f'clips/{i}.mp4', 'preference': 1}
    row['conversations'] = [{'from': 'human', 'value': '<video>\nWhat happens?'}]
    row |= {'output_1': right, 'output_2': right if i % 2 else left}
    rows.append(row)
  for preference in (1, 2):
    changed = [
      row | ({'preference': preference} if i % 2 else {}) for i, row in enumerate(rows)
    ]
    (out / f'prefer_{preference}.json').write_text(json.dumps(changed))


def train(out: pathlib.Path, name: str) -> tuple[subprocess.CompletedProcess, dict]:
  """Trains a reward model; returns the result of the command and the summary."""
  workdir = out / 'runs' / name
  for section in ('config', 'config.inputs'):  # where paths of inputs are settings
    shutil.rmtree(workdir, ignore_errors=True)
    inputs = (f'--{section}.pairs={out / name}.json', f'--{section}.sft=merged')
    data = (f'--config.data.root={out}', '--config.data.holdout=0.3')
    log = ('--config.log.progress=False', f'--workdir={workdir}')
    flags = ('--config', 'configs/reward.py', *inputs, *data, *log)
    result = commands.run('launch.train', *flags)
    if 'no field' not in result.stderr:
      break
  summary = workdir / 'tiny' / 'reward' / 'summary.json'
  return result, json.loads(summary.read_text()) if summary.is_file() else {}


def check(out: pathlib.Path) -> str:
  make(out)
  accuracies = []
  for preference in (1, 2):
    result, summary = train(out, f'prefer_{preference}')
    if result.returncode:
      names = {'the equal answers': 'equal|same|identical'}
      return commands.refused_naming(result, names, out / f'prefer_{preference}.json')
    accuracies.append(summary['accuracy'])
  low, high = sorted(accuracies)
  if high - low < 0.1:
    return ''
  return (
    f'accuracy {low:.0%} or {high:.0%}, as the file prefers the first or the second of '
    'two equal answers; right: the same number'
  )


def cases(out: pathlib.Path) -> dict:
  return {'equal_answers': lambda: check(out)}


if __name__ == '__main__':
  commands.main(cases)
