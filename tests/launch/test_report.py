"""The command that writes a page."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.reports.page import page

ROOT = pathlib.Path(__file__).parents[2]


def report(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'launch.report', *map(str, arguments)],
    cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True, text=True, check=False,
  )  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_a_page_and_says_what_is_missing(tmp_path):
  first = run_fixture.run(tmp_path / 'a' / 'tiny')
  second = run_fixture.run(tmp_path / 'b' / 'tiny', seed=43)
  (second / 'ppo' / 'samples.jsonl').unlink()
  out = tmp_path / 'compared' / 'page.html'
  done = report(first, tmp_path / 'b', '--out', out)
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'Report: {out}\n'
  line = f'{second}/ppo/samples.jsonl: no such file, so no answers of PPO\n'
  assert done.stderr == line and line.strip() in out.read_text()


@pytest.mark.slow
def test_no_run_is_one_line(tmp_path):
  done = report()
  assert done.returncode == 2 and done.stderr.startswith('error: no run: python -m')
  done = report(tmp_path / 'absent')
  assert done.returncode == 2 and done.stderr.count('\n') == 1


def test_the_end_of_a_pipeline_is_a_page(tmp_path, capsys):
  run = run_fixture.run(tmp_path / 'runs' / 'tiny')
  page.write_after(run, ['eval'])  # a single stage
  assert not (run / 'report.html').exists()
  page.write_after(run, ['ppo', 'eval'])
  assert f'Report: {run}/report.html' in capsys.readouterr().out
  assert (run / 'report.html').read_text().startswith('<!DOCTYPE html>')
