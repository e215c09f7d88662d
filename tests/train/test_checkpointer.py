"""Checkpoints: what is saved comes back, and nobody resumes somebody else's run."""

import errno
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_rlaif_jax.settings.sections import CheckpointConfig
from vlm_rlaif_jax.train import journal
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.state import TrainState

WHO = {'weights': 'abc', 'optim.learning_rate': 0.1}


def make_state(value: float) -> TrainState:
  trainable = {'lora': {'a': jnp.full((2, 3), value)}}
  return TrainState(
    step=jnp.int32(round(value)),
    trainable=trainable,
    opt_state=optax.adam(1e-3).init(trainable),
    key=jax.random.key(7),
  )


def checkpointer(folder, who=WHO, **changes):
  return Checkpointer(folder, CheckpointConfig(**changes), who)


def test_the_newest_state_comes_back_with_its_extras(tmp_path):
  first = checkpointer(tmp_path, keep=2)
  for step in (1, 2, 3):
    first.save(make_state(step), {'history': [step]})
  first.wait()
  first.close()
  again = checkpointer(tmp_path)
  state, extra = again.restore(make_state(0))
  assert int(state.step) == 3
  assert extra == {'history': [3]}
  np.testing.assert_array_equal(state.trainable['lora']['a'], np.full((2, 3), 3.0))
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7))
  )
  again.close()


def test_extras_are_those_of_the_time_of_the_save(tmp_path, monkeypatch):
  """The next iteration changes them while a thread has yet to write the last."""
  may_write = threading.Event()
  to_text = json.dumps

  def late(*args, **kwargs):
    if threading.current_thread() is not threading.main_thread():
      assert may_write.wait(60)
    return to_text(*args, **kwargs)

  monkeypatch.setattr(json, 'dumps', late)
  first = checkpointer(tmp_path)
  extra = {'adapter': 1, 'held_out/reward': {'0': 0.5}}
  first.save(make_state(1), extra)
  extra['adapter'] = 2
  extra['stopped'] = 2
  extra['held_out/reward']['1'] = 0.75
  may_write.set()
  first.wait()
  first.close()
  again = checkpointer(tmp_path)
  _, restored = again.restore(make_state(0))
  assert restored == {'adapter': 1, 'held_out/reward': {'0': 0.5}}
  again.close()


def test_nothing_saved_nothing_restored(tmp_path):
  empty = checkpointer(tmp_path)
  assert empty.restore(make_state(0)) is None
  empty.close()


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  torn = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
  torn.mkdir()
  (torn / 'half').write_text('written when the power went')
  again = checkpointer(tmp_path)
  state, _ = again.restore(make_state(0))
  assert int(state.step) == 1
  again.close()


def test_a_save_under_way_is_finished_where_an_error_ends_the_steps(tmp_path):
  first = checkpointer(tmp_path)
  with pytest.raises(RuntimeError, match='ended'), first.finishing():
    first.save(make_state(1))
    raise RuntimeError('ended')
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'1', 'identity.json'}
  first.close()


def test_another_run_is_refused_with_what_differs(tmp_path):
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  other = {**WHO, 'optim.learning_rate': 0.2}
  with pytest.raises(journal.ResumeError, match=r'optim.learning_rate: 0.1 -> 0.2'):
    checkpointer(tmp_path, other)
  fresh = checkpointer(tmp_path, other, on_change='restart')
  assert fresh.restore(make_state(0)) is None
  fresh.close()


def test_a_restart_starts_anew_though_nothing_changed(tmp_path, capsys):
  first = checkpointer(tmp_path)
  first.save(make_state(3))
  first.wait()
  first.close()
  (tmp_path / 'summary.json').write_text('{}')
  fresh = checkpointer(tmp_path, on_change='restart')
  assert fresh.restore(make_state(0)) is None
  fresh.close()
  assert '(step 3) is dropped: the stage starts anew' in capsys.readouterr().out
  assert not (tmp_path / 'summary.json').exists()


def test_what_changed_is_said_where_it_is_ignored(tmp_path, capsys):
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  again = checkpointer(tmp_path, {**WHO, 'weights': 'other'}, on_change='ignore')
  state, _ = again.restore(make_state(0))
  assert int(state.step) == 1
  again.close()
  assert "although weights: 'abc' -> 'other'" in capsys.readouterr().out


def test_what_is_ignored_is_of_the_other_run_until_this_one_saves(tmp_path):
  """It may fail before, as by settings of another network."""
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  other = {**WHO, 'weights': 'other'}
  checkpointer(tmp_path, other, on_change='ignore').close()
  checkpointer(tmp_path).close()
  again = checkpointer(tmp_path, other, on_change='ignore')
  again.save(make_state(1))  # a run that was done, and is so again
  again.close()
  checkpointer(tmp_path, other).close()
  with pytest.raises(journal.ResumeError, match="weights: 'other' -> 'abc'"):
    checkpointer(tmp_path)


def test_damaged_settings_are_named(tmp_path):
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  (path,) = tmp_path.rglob('identity.json')
  path.write_text('{"optim')
  with pytest.raises(journal.ResumeError, match=r'identity\.json: damaged'):
    checkpointer(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [(None, 'missing beside saved steps'), ('[]', 'a list, expected')],
)
def test_steps_of_a_run_that_is_not_known_are_not_resumed(
  text, message, tmp_path, capsys
):
  """As after a kill while a restart removed them, or a copy that left it out."""
  first = checkpointer(tmp_path)
  first.save(make_state(1))
  first.wait()
  first.close()
  path = tmp_path / 'checkpoints' / 'identity.json'
  path.unlink()
  if text:
    path.write_text(text)
  with pytest.raises(journal.ResumeError, match=rf'identity\.json: {message}'):
    checkpointer(tmp_path, {**WHO, 'weights': 'other'})
  again = checkpointer(tmp_path, {**WHO, 'weights': 'other'}, on_change='ignore')
  assert int(again.restore(make_state(0))[0].step) == 1
  again.close()
  assert 'nobody knows of which run it is' in capsys.readouterr().out


def test_a_kill_while_a_restart_removes_steps_leaves_none_to_resume(
  tmp_path, monkeypatch
):
  first = checkpointer(tmp_path)
  first.save(make_state(3))
  first.wait()
  first.close()

  def killed(path, ignore_errors):
    if path.exists():
      (path / 'identity.json').unlink()
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('vlm_rlaif_jax.train.checkpointer.shutil.rmtree', killed)
    with pytest.raises(KeyboardInterrupt):
      checkpointer(tmp_path, on_change='restart')
  again = checkpointer(tmp_path)
  assert again.restore(make_state(0)) is None
  again.close()
  assert not (tmp_path / 'checkpoints.dropped').exists()


def test_a_step_that_cannot_be_read_is_one_line_that_names_the_one_before(
  tmp_path, monkeypatch
):
  """Reasons are those of orbax for another `lora.rank` and for a file that was cut."""
  first = checkpointer(tmp_path)
  for step in (1, 2):
    first.save(make_state(step))
  first.wait()
  reasons = (
    ValueError('Requested shape: (8,) is not compatible\n with the stored shape: (4,)'),
    FileNotFoundError('_METADATA'),
  )
  for reason in reasons:

    def unreadable(*_, reason=reason, **__):
      raise reason

    monkeypatch.setattr(first.manager, 'restore', unreadable)
    with pytest.raises(
      journal.ResumeError, match=r'/2: cannot be restored \(.*from step 1; .*=restart'
    ) as caught:
      first.restore(make_state(0))
    assert ' '.join(str(reason).split()) in str(caught.value)
  first.close()


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
  first = checkpointer(tmp_path)

  def full(*_, **__):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Error writing "step/0": No space left on device'
    )

  monkeypatch.setattr(first.manager, 'wait_until_finished', full)
  with pytest.raises(OSError, match='checkpoints') as caught:
    first.wait()
  assert caught.value.errno == errno.ENOSPC
  monkeypatch.undo()
  first.close()


def test_settings_may_change_before_anything_is_saved(tmp_path):
  checkpointer(tmp_path).close()
  checkpointer(tmp_path, {**WHO, 'weights': 'other'}).close()
