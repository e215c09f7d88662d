"""The rehearsal: the whole method for a few steps on random weights."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from launch import jobs, rehearse
from tests import xla
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.stage import RANDOM
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.state import TrainState

ROOT = pathlib.Path(__file__).parents[2]


def configured(name: str):
  stage, _, arg = name.partition(':')
  config = jobs.importlib.import_module(f'configs.{stage}').get_config(arg)
  return jobs.completed(from_config_dict(stages.every()[stage].settings, config))


def test_a_rehearsal_runs_every_stage_in_its_real_size(tmp_path):
  settings = rehearse.short(configured('ppo:7b,layout=a100x8'))
  runs, notes = jobs.resolve_jobs(settings, tmp_path, make_all=True)
  names = [f'{run.stage}:{run.size}' for run in runs]
  made = {'sft:7b', 'sft:13b', 'label:13b', 'reward:13b', 'init:7b', 'ppo:7b'}
  assert {*names[:-1]} == made
  assert names[-2:] == ['ppo:7b', 'eval:7b']
  assert notes == []
  assert {run.base for run in runs} == {RANDOM}
  assert settings.critic_base == RANDOM


def test_a_rehearsal_shortens_a_run_and_keeps_its_programs():
  real = configured('ppo:7b,layout=a100x8')
  short = rehearse.short(real)
  assert short.ppo.iterations == rehearse.ITERATIONS
  same = ('rollout_batch', 'step_batch', 'micro_batch', 'response_tokens', 'epochs')
  for name in same:
    assert getattr(short.ppo, name) == getattr(real.ppo, name)
  for name in ('model', 'critic', 'quant', 'critic_quant', 'mesh', 'optim'):
    assert getattr(short, name) == getattr(real, name)
  assert dataclasses.replace(short.data, **{
    name: getattr(real.data, name)
    for name in ('root', 'train', 'holdout', 'max_samples')
  }) == real.data  # fmt: skip


def test_memory_over_plan_is_refused():
  record = {'stage': 'ppo', 'size': '7b', 'planned_bytes': 50e9, 'used_bytes': 51e9}
  rehearse._check_memory([record])
  with pytest.raises(rehearse.RehearsalError, match=r'52\.00 GB .* planned were 50\.'):
    rehearse._check_memory([{**record, 'used_bytes': 52e9}])


def _rehearsed_ppo(tmp_path, monkeypatch, again):
  """Returns whether PPO is taken as resumed, of whose last iteration `again` is run."""
  folder = tmp_path / 'tiny' / 'ppo'
  for number in (1, 2):
    (folder / 'checkpoints' / str(number)).mkdir(parents=True)
    (folder / 'checkpoints' / str(number) / 'state').write_text('state')
  summary = {'adapter': '00', 'fingerprint': 'ff'}
  (folder / 'summary.json').write_text(json.dumps(summary))

  def run_stage(run, workdir):
    again(folder / 'checkpoints')
    return summary

  monkeypatch.setattr('vlm_rlaif_jax.stages.run', run_stage)
  return rehearse._check_resumed(None, tmp_path, folder)


def test_iterations_that_are_computed_anew_are_not_resumed(tmp_path, monkeypatch):
  assert _rehearsed_ppo(tmp_path, monkeypatch, lambda root: (root / '2').mkdir())

  def start_anew(root):
    shutil.rmtree(root)
    for number in (1, 2):
      (root / str(number)).mkdir(parents=True)
      (root / str(number) / 'state').write_text('state')

  with pytest.raises(rehearse.RehearsalError, match='wrote it again; expected it to'):
    shutil.rmtree(tmp_path / 'tiny')
    _rehearsed_ppo(tmp_path, monkeypatch, start_anew)


def test_a_rehearsed_run_goes_on_from_what_it_saved(tmp_path):
  run = rehearse.short(configured('ppo'))
  weights = {'w': jnp.ones(3)}
  state = TrainState(
    jnp.int32(1), weights, optax.sgd(1.0).init(weights), jax.random.key(0)
  )
  saved = Checkpointer(tmp_path, run.checkpoint, {'seed': 1})
  saved.save(state)
  saved.wait()
  saved.close()
  again = Checkpointer(tmp_path, run.checkpoint, {'seed': 1})
  assert again.restore(state) is not None
  again.close()


def test_a_stage_that_trains_has_metrics(tmp_path):
  assert rehearse._check_metrics('label', tmp_path) == 0
  with pytest.raises(rehearse.RehearsalError, match='no metrics, expected a row'):
    rehearse._check_metrics('sft', tmp_path)


@pytest.mark.pipeline
def test_the_tiny_rehearsal_passes(tmp_path):
  env = {**os.environ, 'XLA_FLAGS': xla.FLAGS}  # one device, as for a user
  done = subprocess.run(
    [
      sys.executable, '-m', 'launch.rehearse', '--config=configs/ppo.py',
      f'--workdir={tmp_path}', '--config.data.frames=4',
      '--config.data.buckets=(192, 384)', '--config.log.progress=False',
      '--config.model.llama.layers=1', '--config.model.vision.layers=2',
      '--config.critic.llama.layers=1', '--config.critic.vision.layers=2',
      '--config.ppo.rollout_batch=8', '--config.ppo.step_batch=8',
      '--config.ppo.micro_batch=4', '--config.ppo.response_tokens=8',
    ],
    cwd=ROOT, env={**env, 'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'},
    capture_output=True, text=True, timeout=900,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  assert 'resumed to the same bits' in done.stdout
  records = json.loads((tmp_path / 'rehearsal' / 'rehearsal.json').read_text())
  assert [record['stage'] for record in records] == [
    'sft', 'label', 'reward', 'init', 'ppo', 'eval'
  ]  # fmt: skip
  for record in records:
    if record['stage'] not in ('label', 'eval'):
      assert record['steps'] >= 1
