"""The command that converts checkpoints."""

import pathlib
import signal
import subprocess
import sys

import pytest

from tests.weights import checkpoints


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'launch.convert', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command(tmp_path):
  ours = checkpoints.write_base(tmp_path / 'ours')
  checkpoints.write_foreign(tmp_path / 'llava', ours, 'llava')
  done = run(tmp_path / 'llava', tmp_path / 'out')
  assert done.returncode == 0, done.stderr
  assert 'decoder of 2 layers and width 16' in done.stdout
  checkpoints.assert_same(tmp_path / 'out', checkpoints.without_joint())
  again = run(tmp_path / 'llava', tmp_path / 'out')
  assert again.returncode == 2
  assert again.stderr.count('\n') == 1 and 'exists already' in again.stderr


STOPPED = """
import os, pathlib, signal, sys, time
from launch import convert as command
from vlm_rlaif_jax.weights import folders

signal.signal(int(sys.argv[1]), signal.SIG_DFL)  # whatever the tests run under

def half(source, out):
  with folders.atomic_folder(out) as part:
    (part / 'x').write_text('x')
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(20)

command.convert = half
command.main(['convert', 'in', sys.argv[2]])
"""


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path, number):
  done = subprocess.run(
    [sys.executable, '-c', STOPPED, str(int(number)), str(tmp_path / 'out')],
    capture_output=True, text=True, check=False,
    cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert done.stderr == f'error: stopped; {tmp_path / "out"} was not written\n'
  assert not list(tmp_path.iterdir())
