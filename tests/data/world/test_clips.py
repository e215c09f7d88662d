"""Clips written from both ends of their list are those that one process writes."""

import json
import os

import pytest

from vlm_rlaif_jax.data.world import build, clips
from vlm_rlaif_jax.settings.sections import WorldConfig

SIZES = {'sft': 3, 'preference': 2, 'rl': 2, 'test': 2}
SMALL = WorldConfig(**SIZES)


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  folder = tmp_path_factory.mktemp('alone')
  return contents(build.build(folder, SMALL, 12, progress=False))


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path, alone, monkeypatch):
  monkeypatch.setattr(clips, 'FEWEST', 0)
  assert contents(build.build(tmp_path, SMALL, 12, progress=False)) == alone


def test_a_process_that_does_not_start_changes_nothing(tmp_path, alone, monkeypatch):
  monkeypatch.setattr(clips, 'FEWEST', 0)
  monkeypatch.setattr(clips, 'MODULE', 'vlm_rlaif_jax.no_such_module')
  assert contents(build.build(tmp_path, SMALL, 12, progress=False)) == alone


def test_the_other_end_stops_where_they_meet(tmp_path):
  jobs = clips.clips_of(SMALL)
  assert jobs[0] == ('sft', 0) and jobs[-1] == ('test', 1) and len(jobs) == 9
  for split in clips.SPLITS:
    (tmp_path / 'videos' / split).mkdir(parents=True)
  met = clips.clip_path(tmp_path, *jobs[5])
  met.write_bytes(b'of the first process')

  def request(parent):
    return json.dumps({'folder': str(tmp_path), 'parent': parent, 'world': SIZES})

  clips.main(request(parent=-1))  # whose parent is gone
  assert [path for path in tmp_path.rglob('*.*') if path.is_file()] == [met]
  clips.main(request(parent=os.getppid()))
  written = [clips.clip_path(tmp_path, *job) for job in jobs]
  assert [path.exists() for path in written] == [False] * 5 + [True] * 4
  assert met.read_bytes() == b'of the first process'
