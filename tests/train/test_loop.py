"""The loop around a step that counts: rows, evaluation, checkpoints, interruption."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from vlm_rlaif_jax.settings.sections import CheckpointConfig, LogConfig
from vlm_rlaif_jax.train import loop
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.journal import ResumeError
from vlm_rlaif_jax.train.metrics import NonFiniteError
from vlm_rlaif_jax.train.state import TrainState


def step(state, batch):
  total = state.trainable['total'] + batch
  new = TrainState(state.step + 1, {'total': total}, {}, state.key)
  return new, {'loss': total}


def fit(folder, step=step, total=6, every=2, log_every=2, batches=None, **options):
  """Returns the sum of 1 .. total, or of other batches, added one by one."""
  checkpointer = Checkpointer(
    folder, CheckpointConfig(every=every), {'weights': 'none'}
  )
  initial = TrainState(jnp.int32(0), {'total': jnp.float32(0)}, {}, jax.random.key(0))
  try:
    final = loop.fit(
      step,
      initial,
      batches or (lambda first: (float(i) for i in range(first + 1, total + 1))),
      total,
      title='count',
      folder=folder,
      checkpointer=checkpointer,
      log=LogConfig(every=log_every, progress=False, tensorboard=False),
      **options,
    )
  finally:
    checkpointer.wait()
    checkpointer.close()
  return float(final.trainable['total'])


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_rows_are_written_at_the_step_of_the_log_and_at_the_last(tmp_path):
  assert fit(tmp_path, total=5) == 15
  read = [(row['step'], row['loss']) for row in rows(tmp_path)]
  assert read == [(2, 3), (4, 10), (5, 15)]
  assert {'seconds', 'steps_per_second', 'compilations'} <= set(rows(tmp_path)[0])
  assert 'tokens_per_second' not in rows(tmp_path)[0]


def test_rates_count_the_work_of_all_steps_since_the_last_row(tmp_path):
  fit(tmp_path, total=2, work=lambda batch: (100.0 * batch, 0.0, 0.0))
  (row,) = rows(tmp_path)
  assert row['tokens_per_second'] == pytest.approx(150 * row['steps_per_second'])


def test_evaluation_comes_first_and_every_so_often_and_last(tmp_path):
  def evaluate(state):
    return {'eval': state.trainable['total']}

  fit(tmp_path, total=5, evaluate=evaluate, evaluate_every=3, evaluate_first=True)
  read = [(row['step'], row['eval']) for row in rows(tmp_path) if 'eval' in row]
  assert read == [(0, 0), (3, 6), (5, 15)]


def test_a_step_that_ends_the_run_is_evaluated_and_saved_like_the_last(tmp_path):
  steps, extra = [], {}

  def counting(state, batch):
    steps.append(batch)
    return step(state, batch)

  def evaluate(state):
    extra[str(int(state.step))] = float(state.trainable['total'])
    return {'eval': state.trainable['total']}

  options = {
    'batches': lambda first: (float(i) for i in range(first + 1, 4)),
    'has_ended': lambda: len(steps) == 3,
    'evaluate': evaluate, 'evaluate_every': 4, 'extra': extra, 'every': 5,
  }  # fmt: skip
  assert fit(tmp_path, counting, **options) == 6
  first = rows(tmp_path)
  assert [row['step'] for row in first if 'loss' in row] == [2, 3]
  assert [(row['step'], row['eval']) for row in first if 'eval' in row] == [(3, 6)]
  extra.clear()
  assert fit(tmp_path, counting, **options) == 6 and steps == [1, 2, 3]
  assert extra == {'3': 6}  # of the checkpoint: nothing is evaluated again
  assert rows(tmp_path) == first


def test_a_stopped_run_goes_on_with_its_extra(tmp_path):
  sent = []

  def stopping(state, batch):
    if batch == 3 and not sent:
      sent.append(os.kill(os.getpid(), signal.SIGTERM))
    return step(state, batch)

  extra = {}

  def evaluate(state):
    extra[str(int(state.step))] = float(state.trainable['total'])
    return {'eval': 1.0}

  options = {'evaluate': evaluate, 'evaluate_every': 1, 'row_every': 1}
  with pytest.raises(loop.Interrupted, match='count: saved at round 3 of 6'):
    fit(tmp_path, stopping, extra=extra, unit='round', **options)
  assert extra == {'1': 1, '2': 3, '3': 6}
  extra.clear()
  assert fit(tmp_path, extra=extra, **options) == 21
  assert extra == {'1': 1, '2': 3, '3': 6, '4': 10, '5': 15, '6': 21}
  assert [row['step'] for row in rows(tmp_path) if 'loss' in row] == [1, 2, 3, 4, 5, 6]


class Recorder:
  """Stands for a profiler; notes what is called."""

  def __init__(self):
    self.calls = []

  def before(self, number):
    self.calls.append(number)

  def after(self, number, values):
    pass

  def end(self):
    self.calls.append('end')

  def close(self):
    self.calls.append('close')


def test_a_trace_ends_where_a_request_or_an_error_ends_the_steps(tmp_path):
  def stopping(state, batch):
    if batch == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return step(state, batch)

  def failing(state, batch):
    if batch == 4:
      raise RuntimeError('failed')
    return step(state, batch)

  one = Recorder()
  with pytest.raises(loop.Interrupted):
    fit(tmp_path, stopping, profiler=one)
  with pytest.raises(RuntimeError, match='failed'):
    fit(tmp_path, failing, profiler=one)
  fit(tmp_path, profiler=one)
  assert one.calls == [1, 2, 'end', 3, 4, 'end', 3, 4, 5, 6, 'close']


def test_a_checkpoint_of_more_steps_than_the_run_has_is_refused(tmp_path):
  """As after fewer epochs with on_change=ignore: the result would be of all six."""
  fit(tmp_path, total=6)
  with pytest.raises(ResumeError, match=r'checkpoints: has 6 steps, the run has 4'):
    fit(tmp_path, total=4)
  assert len(rows(tmp_path)) == 3  # nothing is dropped


def test_states_are_saved_in_turn(tmp_path):
  """Whoever drops what a checkpoint names waits for the one after it."""
  on_disk = []

  def saved():
    names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
    on_disk.append({'2', '4', '6'} & names)

  fit(tmp_path, saved=saved)
  assert len(on_disk) == 3
  assert '2' in on_disk[1] and '4' in on_disk[2]


def test_a_request_during_the_last_step_lets_the_run_end(tmp_path):
  def stopping(state, batch):
    if batch == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return step(state, batch)

  assert fit(tmp_path, stopping, total=4) == 10


def test_a_state_that_went_bad_is_not_saved(tmp_path):
  def diverging(state, batch):
    new, metrics = step(state, batch)
    return new, {'loss': metrics['loss'] if batch < 3 else jnp.nan}

  with pytest.raises(NonFiniteError, match='loss is nan at step 3'):
    fit(tmp_path, diverging, every=4, log_every=10)
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
