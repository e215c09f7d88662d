"""Which rows a step reads and what they count, whatever the micro-batches are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ppo import PRESETS
from tests.rl.learner import (
  ROWS,
  R,
  algorithm,
  rollout_of,
  scores_like,
  state,
  up_to,
)
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.rl import minibatches
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.settings.sections import MeshConfig

LENGTHS = [1, 1, 6, 6, 2, 1, 6, 3]


def chosen_rows(preset, **changes) -> np.ndarray:
  """Returns the rows of the rollout in each micro-batch, `[steps, S / M, M]`."""
  sizes = {'rollout_batch': 16, 'step_batch': 8, 'epochs': 3, **changes}
  config = PpoConfig(**{**PRESETS[preset], **sizes})
  chosen = np.asarray(minibatches.choose(jax.random.key(0), config))
  blocks = np.arange(16).reshape(config.micro_batch, -1)
  return np.asarray(minibatches.take(jnp.asarray(blocks), jnp.asarray(chosen)))


def test_every_row_is_used_once_an_epoch_and_stays_in_its_group():
  order = np.asarray(minibatches.group_orders(jax.random.key(0), 4, 3))
  assert order.shape == (3, 4)
  for group in range(4):
    assert sorted(order[:, group]) == [0, 1, 2]


@pytest.mark.parametrize('preset', sorted(PRESETS))
@pytest.mark.parametrize('micro', [2, 4, 8])
def test_every_row_is_in_one_step_of_an_epoch(preset, micro):
  rows = chosen_rows(preset, micro_batch=micro)
  assert rows.shape == (6, 8 // micro, micro)
  for epoch in rows.reshape(3, -1):
    assert sorted(epoch) == list(range(16))
  blocks = np.arange(micro) * (16 // micro)  # of a device each, or of several
  assert ((rows >= blocks) & (rows < blocks + 16 // micro)).all()


def test_the_rows_of_a_step_do_not_depend_on_micro_batches():
  steps = [
    np.sort(chosen_rows('masked', micro_batch=micro).reshape(6, -1))
    for micro in (2, 4, 8)
  ]
  np.testing.assert_array_equal(steps[0], steps[2])
  np.testing.assert_array_equal(steps[1], steps[2])


@pytest.fixture(scope='module')
def experience(prompts):
  """A rollout of very different lengths, its scores and estimates."""
  rng = np.random.default_rng(0)
  drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  mask = up_to(LENGTHS)
  rollout = rollout_of(prompts, rng.integers(3, 60, (ROWS, R)), mask)
  logprobs = jnp.where(mask, -4 + 0.1 * drawn(ROWS, R), 0.0)
  scores = scores_like(
    mask, logprobs=logprobs, values=drawn(ROWS, R), reward=3 * drawn(ROWS)
  )
  return rollout, scores, algorithm('masked').estimate(rollout, scores, jnp.zeros(8))[0]


def updated(networks, experience, micro: int, devices: int = 1, **changes):
  """Returns metrics and first moments of one optimizer step, on several devices."""
  sizes = {'micro_batch': micro, 'step_batch': 8, 'epochs': 1, **changes}
  algo = algorithm('masked', clip_value_by='std', **sizes)
  mesh = sharding.make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
  rows = sharding.by_batch(mesh)
  rollout, scores, estimates = experience
  adapter = rollout.adapter
  place = lambda tree: sharding.put(tree, rows)
  rollout = dataclasses.replace(
    jax.tree.map(place, dataclasses.replace(rollout, adapter=jnp.zeros(ROWS))),
    adapter=sharding.put(adapter, sharding.replicated(mesh)),
  )
  everywhere = sharding.put(
    (state(algo, 'uniform'), networks), sharding.replicated(mesh)
  )
  with jax.set_mesh(mesh):
    new, metrics = jax.jit(algo.update)(
      *everywhere, rollout, place(scores), place(estimates), 1e-3
    )
  metrics.pop('adapter')
  moments = trees.flatten(jax.device_get(new.opt_state[1].mu))
  return {k: float(v) for k, v in metrics.items()}, moments


@pytest.mark.slow
def test_an_update_does_not_depend_on_its_layout(networks, experience):
  """Losses and gradients, which the first moments are made of."""
  metrics, moments = updated(networks, experience, 8)
  assert metrics['value/clip_share'] < 1
  for micro, devices in ((2, 2), (4, 4)):
    other, moved = updated(networks, experience, micro, devices)
    assert other == pytest.approx(metrics, rel=1e-5, abs=1e-5), (micro, devices)
    for name, value in moments.items():
      np.testing.assert_allclose(moved[name], value, atol=1e-5, err_msg=name)


def test_a_micro_batch_counts_by_its_real_tokens():
  mask = jnp.asarray(np.arange(R) < np.asarray([[1, 1], [6, 4]])[..., None])
  masked, parity = (PpoConfig(**PRESETS[name]) for name in ('masked', 'parity'))
  np.testing.assert_allclose(minibatches.weights(mask, masked), [2 / 12, 10 / 12])
  np.testing.assert_array_equal(minibatches.weights(mask, parity), [0.5, 0.5])


def test_the_spread_of_returns_is_that_of_real_tokens():
  mask = jnp.arange(4)[None, None] < jnp.asarray([[2], [3]])[..., None]
  returns = jnp.where(mask, jnp.arange(8.0).reshape(2, 1, 4), 1e6)
  config = PpoConfig(clip_value=0.5, clip_value_by='std')
  expected = 0.5 * np.std([0, 1, 4, 5, 6])
  found = minibatches.value_radius(returns, mask, config)
  assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_value_clip_is_a_number_where_there_is_no_spread():
  """Infinite times 0, or a step of empty answers, would be NaN."""
  mask, equal = jnp.ones((2, 1, 4), bool), jnp.ones((2, 1, 4))
  none = PpoConfig(clip_value=float('inf'), clip_value_by='std')
  assert minibatches.value_radius(equal, mask, none) == float('inf')
  config = PpoConfig(clip_value=0.5, clip_value_by='std')
  assert float(minibatches.value_radius(equal, ~mask, config)) == 0.0


def test_a_removed_unknown_token_does_not_move_the_reward(experience):
  """Register B36 beside `last_token`: the reward is behind the hole, at the end."""
  algo = algorithm('masked', unknown='remove', gamma=0.0, gae_lambda=0.0)
  mask = jnp.asarray(np.tile([True, False, True, True, False, False], (ROWS, 1)))
  rollout = dataclasses.replace(experience[0], tokens=jnp.where(mask, 5, 0), mask=mask)
  scores = scores_like(mask, reward=jnp.ones(8))
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(8))
  np.testing.assert_array_equal(np.asarray(estimates.returns)[0], [0, 0, 0, 1, 0, 0])
