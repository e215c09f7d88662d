"""PPO at its real size compiles for the machines it is for, which are not here.

Needs the compilers: the CUDA plugin (extra [gpu]) or libtpu (extra [tpu]).
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.compilers import GPU, TPU

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.pipeline
@pytest.mark.parametrize(
  ('target', 'layout'),
  [
    pytest.param('a100x8', 'a100x8', marks=GPU),
    pytest.param('v5e:4x4', 'v5e-16', marks=TPU),
  ],
)
def test_every_phase_of_ppo_compiles_and_fits(target, layout, tmp_path):
  kept = tmp_path / 'plan.json'
  env = {**os.environ, 'XLA_FLAGS': ''}
  config = f'configs/ppo.py:7b,layout={layout}'
  done = subprocess.run(
    [sys.executable, '-m', 'launch.plan', '--config', config, '--target', target,
     '--json', str(kept)],
    cwd=ROOT, capture_output=True, text=True, env=env, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'every phase fits' in done.stdout
  phases = json.loads(kept.read_text())['phases']
  names = {phase['name'].split(' ')[0] for phase in phases}
  assert names == {'encode', 'project', 'rollout', 'score', 'estimate', 'update'}
