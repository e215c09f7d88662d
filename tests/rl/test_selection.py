import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.nn.heads import ScalarHead
from vlm_rlaif_jax.rl import selection
from vlm_rlaif_jax.rl.selection import Selection
from vlm_rlaif_jax.train.state import TrainState

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
