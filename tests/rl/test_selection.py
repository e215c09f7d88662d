import copy
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.nn.heads import ScalarHead
from vlm_rlaif_jax.rl import selection
from vlm_rlaif_jax.rl.selection import Selection
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.weights.artifacts import ArtifactError

SCORE = 'held_out/judge'


def state(step):
  weights = {'a': jnp.full(2, float(step))}
  head = ScalarHead(w=jnp.full(3, float(step)), b=jnp.float32(step))
  trainable = {'policy': weights, 'value': weights, 'head': head}
  return TrainState(step=jnp.int32(step), trainable=trainable, opt_state=None, key=None)


def test_the_best_evaluation_is_kept_and_of_equals_the_first(tmp_path):
  history = {}
  kept = Selection(tmp_path, SCORE, history)
  for step, score in ((0, 0.1), (8, 0.5), (16, 0.5), (20, 0.3)):
    kept.offer(state(step), {SCORE: score, 'held_out/reward': step})
  assert history['best'] == {'iteration': 8, 'score': 0.5}
  parts = kept.parts(state(20))
  np.testing.assert_array_equal(parts['policy']['a'], 8)
  np.testing.assert_array_equal(parts['value_head']['w'], 8)
  assert set(parts) == {'policy', 'value', 'value_head'}


def test_a_run_that_goes_on_has_the_best_policy_of_its_checkpoint(tmp_path):
  """Killed after a better evaluation that it does not come to once more."""
  history = {}
  killed = Selection(tmp_path, SCORE, history)
  for step, score in ((0, 0.1), (2, 0.5)):
    killed.offer(state(step), {SCORE: score})
  killed.saved()  # the checkpoint of iteration 4
  of_checkpoint = copy.deepcopy(history)
  killed.offer(state(6), {SCORE: 0.7})
  again = Selection(tmp_path, SCORE, of_checkpoint)
  again.resume()
  again.offer(state(6), {SCORE: 0.3})  # with another kl_coef, say
  np.testing.assert_array_equal(again.parts(state(8))['policy']['a'], 2)


def test_policies_that_no_checkpoint_names_are_dropped(tmp_path):
  def there():
    return sorted(path.name for path in (tmp_path / 'best').iterdir())

  history = {}
  one = Selection(tmp_path, SCORE, history)
  one.offer(state(0), {SCORE: 0.1})
  one.saved()
  for step in (1, 2):
    one.offer(state(step), {SCORE: step})
  assert there() == ['0', '1', '2']
  one.saved()  # may not be on disk yet: a kill goes back to the one before
  assert there() == ['0', '2']
  one.saved()
  assert there() == ['2']
  anew = Selection(tmp_path, SCORE, {})
  anew.resume()
  assert there() == []


def test_a_best_policy_that_is_gone_is_said_before_the_run_goes_on(tmp_path):
  history = {}
  Selection(tmp_path, SCORE, history).offer(state(2), {SCORE: 0.5})
  shutil.rmtree(tmp_path / 'best' / '2')
  with pytest.raises(ArtifactError, match=r'best/2: the checkpoint says .* not there'):
    Selection(tmp_path, SCORE, history).resume()


def test_the_one_best_policy_of_an_earlier_version_is_read(tmp_path):
  history = {}
  Selection(tmp_path, SCORE, history).offer(state(2), {SCORE: 0.5})
  (tmp_path / 'best' / '2' / 'artifact').rename(tmp_path / 'best' / 'artifact')
  again = Selection(tmp_path, SCORE, history)
  again.resume()
  np.testing.assert_array_equal(again.parts(state(8))['policy']['a'], 2)


def test_a_run_without_a_selected_policy_is_one_line(tmp_path):
  with pytest.raises(ArtifactError, match=r'best: has no policy selected by held_out'):
    Selection(tmp_path, SCORE, {}).parts(state(8))


def test_scores_of_two_metrics_do_not_compare(tmp_path):
  """A run that goes on with another `ppo.select` (checkpoint.on_change=ignore)."""
  history = {}
  Selection(tmp_path, SCORE, history).offer(state(8), {SCORE: 0.9})
  truth = Selection(tmp_path, 'held_out/true_quality', history)
  for step, score in ((16, 0.5), (24, 0.4)):
    truth.offer(state(step), {'held_out/true_quality': score})
  assert history['best'] == {'iteration': 16, 'score': 0.5}
  assert history['selected_by'] == 'held_out/true_quality'


def test_the_alarm_compares_evaluations_that_have_both(tmp_path, capsys):
  """The first two have no score: the judge came later."""
  rewards = {'0': 9.0, '5': 8.0, '10': 1.0, '15': 2.0, '20': 3.0}
  history = {'held_out/reward': rewards, SCORE: {'10': 3.0, '15': 2.0}}
  history['best'] = {'iteration': 10, 'score': 3.0}
  selection_of = Selection(tmp_path, SCORE, history)
  selection_of.check_optimization()
  assert 'over_optimized' not in history
  history[SCORE]['20'] = 1.0
  selection_of.check_optimization()
  assert history['over_optimized'] == 20
  assert 'the policy of iteration 10 is the best' in capsys.readouterr().out


def test_without_a_score_the_last_state_is_kept_and_nothing_is_written(tmp_path):
  history = {}
  kept = Selection(tmp_path, '', history)
  kept.offer(state(8), {})
  np.testing.assert_array_equal(kept.parts(state(20))['policy']['a'], 20)
  assert not history and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'rewards, scores, alarm',
  [
    ([0, 1, 2], [3, 2, 1], True),
    ([0, 1, 2], [1, 2, 1], False),  # fell once
    ([0, 1, 1], [3, 2, 1], False),  # the reward did not rise
    ([1, 2], [2, 1], False),  # too early
    ([0, 5, 6, 7], [9, 9, 2, 1], True),
  ],
)
def test_alarm(rewards, scores, alarm):
  assert selection.is_over_optimized(rewards, scores) == alarm
