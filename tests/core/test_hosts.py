"""Two and four real processes on loopback compute what one computes, and notice when
they would not."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests import xla
from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.build import UserError

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = pathlib.Path(__file__).with_name('hosts_program.py')
ERRORS = PROGRAM.with_name('host_errors_program.py')


def spawn(count: int, out: pathlib.Path, *arguments, devices: int, program=PROGRAM):
  """Runs the program in `count` processes that together have `devices` devices."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  running = []
  for index in range(count):
    environment = {
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'JAX_PLATFORMS': 'cpu',
      # As `launch` has it: a host keeps no programs that the others lack.
      'JAX_ENABLE_COMPILATION_CACHE': str(count == 1),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices // count} '
      f'{xla.FLAGS}',
    }
    command = [sys.executable, str(program), str(out), *arguments]
    if count > 1:
      command += [f'--coordinator={address}', f'--processes={count}']
      command += [f'--process={index}']
    running.append(
      subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      )
    )  # fmt: skip
  return [(*one.communicate(timeout=900), one.returncode) for one in running]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  folder = tmp_path_factory.mktemp('alone')
  [(_, errors, status)] = spawn(1, folder, devices=4)
  assert status == 0, errors
  return json.loads((folder / 'result.json').read_text())


@pytest.mark.pipeline
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_equal_one(count, alone, tmp_path):
  for _, errors, status in spawn(count, tmp_path, devices=4):
    assert status == 0, errors[-3000:]
  together = json.loads((tmp_path / 'result.json').read_text())
  for name in ('tokens', 'asked'):  # sampling is keyed per example
    assert together[name] == alone[name], name
  assert len(alone['asked']) == 15
  names = ('sft', 'reward', 'ppo', 'logprobs', 'adapter', 'resumed', 'odds', 'texts')
  for name in names:
    # Sums over hosts have another order, and updates carry it on; a score is what is
    # left of terms near 1, so its last bits are some ten of theirs (1.2e-7).
    assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=4e-6), name


@pytest.mark.slow
@pytest.mark.parametrize('what', ['seed', 'code', 'data', 'base', 'folder', 'workdir'])
def test_hosts_that_differ_are_refused(what, tmp_path):
  ended = spawn(2, tmp_path, f'differ-{what}', devices=2, program=ERRORS)
  for _, errors, status in ended:
    assert status == 2, errors[-2000:]
    lines = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, errors[-2000:]
    wanted = {'base': 'host 1: ', 'folder': 'host 1 does not see what host 0 writes'}
    assert wanted.get(what, 'host 1 of 2 differs from host 0') in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize('host', [0, 1])
def test_an_error_of_one_host_ends_all_with_that_error(host, tmp_path):
  """The others wait in a collective, which the host that failed never joins."""
  outputs = spawn(2, tmp_path, f'fail-{host}', devices=2, program=ERRORS)
  for index, (_, errors, status) in enumerate(outputs):
    assert status == 1, (index, errors[-2000:])
    wanted = "OSError: [Errno 28] No space left on device: 'state.bin'"
    assert wanted in errors, (index, errors[-2000:])
    assert (f'host {host}:' in errors) == (index != host)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--processes=2', '--coordinator is missing'),
    ('--coordinator=auto', '--coordinator=auto: no other processes were found'),
  ],
)
def test_half_said_is_refused(flag, message):
  done = subprocess.run(
    [sys.executable, str(ERRORS), '/nowhere', 'fail-0', flag],
    cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
    capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith(f'error: {message}')


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot be made .*; choose another --workdir'):
    hosts.claim(tmp_path / 'file' / 'tiny' / 'sft')


def test_a_folder_belongs_to_one_process(tmp_path):
  claim = 'import pathlib; from vlm_rlaif_jax.core import hosts; '
  claim += f'hosts.claim(pathlib.Path({str(tmp_path)!r})); '
  run = lambda more: subprocess.Popen(
    [sys.executable, '-c', claim + more],
    cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  with run('print("mine", flush=True); import time; time.sleep(600)') as other:
    assert other.stdout.readline() == 'mine\n'
    said = rf'{tmp_path}: another run is writing there \(process {other.pid} on '
    with pytest.raises(UserError, match=said):
      hosts.claim(tmp_path)
    other.kill()  # as by kill -9
  hosts.claim(tmp_path)
  hosts.claim(tmp_path)  # a stage may run twice in one process
  with run('') as refused:
    assert f'(process {os.getpid()} on' in refused.communicate()[1]
  assert refused.returncode == 1
