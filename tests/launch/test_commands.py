"""The scripts of launch/ say what they would do."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
TPU = {
  'PROJECT': 'p', 'ZONE': 'us-west4-a', 'NAME': 'rlaif', 'TYPE': 'v5litepod-16',
  'BUCKET': 'gs://b',
}  # fmt: skip


def script(name, *arguments, **environment):
  return subprocess.run(
    ['sh', str(LAUNCH / name), *arguments],
    env={**os.environ, **environment},
    capture_output=True, text=True, check=False,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['create'], ['tpu-vm create rlaif', '--accelerator-type=v5litepod-16']),
    (['create'], ['--version=v2-alpha-tpuv5-lite', '--zone=us-west4-a']),
    (['install'], ['--worker=all', 'vlm-rlaif-jax[tpu]', 'gcsfuse --implicit-dirs']),
    (['stop'], ['--worker=all', 'pkill -INT']),
    (['install'], [' --rename-dir-limit=', ' b bucket']),  # checkpoints are renamed
    (
      ['run', 'configs/ppo.py:7b,layout=v5e-16', '--config.ppo.kl_coef=0.2'],
      ['--worker=all', 'launch.train --coordinator=auto --config '
       'configs/ppo.py:7b,layout=v5e-16',
       '--config.ppo.kl_coef=0.2', '--workdir=../bucket/runs'],
    ),
    (['fetch', 'runs/7b/ppo'], ['rsync -r gs://b/runs/7b/ppo runs/7b/ppo']),
    (['delete'], ['tpu-vm delete rlaif', '--quiet']),
  ],
)  # fmt: skip
def test_tpu_vm_prints_its_commands(arguments, expected):
  done = script('tpu_vm.sh', '--dry-run', *arguments, **TPU)
  assert done.returncode == 0, done.stderr
  for text in expected:
    assert text in done.stdout


def test_a_missing_name_is_one_line():
  done = script('tpu_vm.sh', '--dry-run', 'create', **{**TPU, 'ZONE': ''})
  assert done.returncode == 2
  assert done.stderr.startswith('error: ZONE is not set')
  assert script('tpu_vm.sh', '--dry-run', 'fly', **TPU).returncode == 2


def test_a100x8_prints_its_command():
  hosts = {'COORDINATOR': 'h:1234', 'HOSTS': '2', 'HOST_INDEX': '0'}
  done = script('a100x8.sh', '--dry-run', 'configs/ppo.py:7b', '--seed=1', **hosts)
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.92' in done.stdout
  command = done.stdout.splitlines()[-1]
  assert command.startswith('python3 -m launch.train --config configs/ppo.py:7b')
  assert '--coordinator=h:1234 --processes=2 --process=0 --seed=1' in command
  assert script('a100x8.sh').returncode == 2
