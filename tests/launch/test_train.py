"""The command line of `launch.train`: a mistake is one line, before JAX is loaded."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config', 'configs/ppo.py:9b'],
      'error: --config argument size=9b: choose one of tiny, small, 7b',
    ),
    (
      ['--config', 'configs/ppo.py:7b,layout=a100x9'],
      'error: --config argument layout=a100x9: choose one of a100x8, a100x8-fsdp',
    ),
    (['--config', 'configs/nope.py'], 'configs/nope.py'),
    (['--config', 'configs/models.py'], 'error: --config: no get_config in the file'),
    (
      ['--config', 'configs/study.py'],
      "error: config.stage: '' is no stage; give --config one of configs/eval.py, ",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.kl_coeff=1'],
      "no field 'kl_coeff' in config.ppo: did you mean config.ppo.kl_coef?",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.mesh.zzz=1'],
      "no field 'zzz' in config.mesh: data, fsdp, tensor",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.kl_coef=high'],
      "--config.ppo.kl_coef=high: must be a number, got 'high'",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.iterations=1.5'],
      "--config.ppo.iterations=1.5: must be a whole number, got '1.5'",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.mask_pads=maybe'],
      "--config.ppo.mask_pads=maybe: must be True or False, got 'maybe'",
    ),
    (
      ['--config', 'configs/sft.py', '--config.model.vision.patch_size=0'],
      'config.model.vision.patch_size: must be >= 1, got 0',
    ),
    (['--config', 'configs/sft.py', '--config.size=7b'], '--config configs/sft.py:7b'),
    (['--config', 'configs/ppo.py', '--config.ppo.gamma=-1'], 'config.ppo.gamma: '),
    (['--config', 'configs/ppo.py:7b'], 'configs/sft.py:7b'),
    (
      ['--config', 'configs/ppo.py', '--config.inputs.sft=/nope'],
      'config.inputs.sft: /nope: no such folder',
    ),
    ([], '--config is missing'),
  ],
)
def test_the_command_line_says_one_line_without_loading_jax(flags, message, tmp_path):
  program = (
    'import sys, runpy\n'
    'class Trap:\n'
    '  def find_spec(self, name, path=None, target=None):\n'
    '    if name == "jax": raise SystemExit("jax was imported")\n'
    'sys.meta_path.insert(0, Trap())\n'
    'from launch import process\n'
    'process.prepare = lambda: None\n'
    'runpy.run_module("launch.train", run_name="__main__")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, *flags, f'--workdir={tmp_path}'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert message in done.stderr
