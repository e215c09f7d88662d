"""GRPO: advantages within a group, a KL term in the loss, no value function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ppo import PRESETS
from tests.rl.learner import (
  ROWS,
  SMALL,
  R,
  algorithm,
  gradient,
  logprobs,
  rolled,
  state,
  update,
)
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.objectives import returns
from vlm_rlaif_jax.rl import algorithms
from vlm_rlaif_jax.rl.grpo import GrpoLearner
from vlm_rlaif_jax.settings.ppo import PpoConfig


def learner(**changes):
  ppo = algorithm()
  sizes = {**SMALL, **PRESETS['masked'], 'algorithm': 'grpo', 'group': 4, **changes}
  fields = {f.name: getattr(ppo, f.name) for f in dataclasses.fields(ppo)}
  return GrpoLearner(**{**fields, 'config': PpoConfig(**sizes)})


def test_advantages_are_of_the_group():
  rewards = jnp.asarray([1.0, 3.0, 5.0, 3.0, 7.0, 7.0, 7.0, 7.0])
  found = np.asarray(returns.group_advantages(rewards, 4))
  spread = np.std([1, 3, 5, 3]) + 1e-4
  np.testing.assert_allclose(found[:4], np.array([-2, 0, 2, 0]) / spread, rtol=1e-6)
  assert not found[4:].any()  # nobody was better than the others


@pytest.mark.parametrize('group', [3, 6, 7])
def test_equal_rewards_teach_nothing_whatever_their_mean_is_rounded_to(group):
  rewards = np.repeat(np.random.default_rng(0).normal(0, 10, 500), group)
  found = returns.group_advantages(jnp.asarray(rewards, jnp.float32), group)
  assert not np.asarray(found).any()


def test_every_algorithm_has_a_learner():
  names = PpoConfig.__dataclass_fields__['algorithm'].type.__args__
  assert set(algorithms.LEARNERS) == set(names)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'group': 1}, 'needs group >= 2 .is 1.'),
    ({'mask_pads': False}, 'mask_pads'),
    ({'group': 3}, 'rollout_batch: 8 is not a multiple of group 3'),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    learner(**changes)


@pytest.mark.slow
def test_a_step_follows_the_group_and_trains_the_policy_alone(
  networks, frozen, prompts
):
  algo = learner(kl_coef=0.0, clip_ratio=0.2, step_batch=8, micro_batch=8, epochs=1)
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  assert scores.values is None
  scores = dataclasses.replace(scores, reward=jnp.arange(8.0) % 4)
  estimates, metrics = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  advantages = np.asarray(estimates.advantages)
  mask = np.asarray(rollout.mask)
  assert not advantages[~mask].any() and np.isfinite(advantages).all()
  assert float(metrics['objective/group_deviation']) > 0

  new, stats = update(algo, current, networks, rollout, scores, estimates, 1e-3)
  assert set(new.trainable) == {'policy'}
  assert float(stats['gradient_norm']) > 0
  after, _ = logprobs(
    algo, networks, new.trainable['policy'], rollout.prompts, rollout.tokens
  )
  change = np.asarray(after - scores.logprobs)
  assert (change * advantages)[mask].sum() > 0  # better than the group: more likely


@pytest.mark.slow
def test_the_gradient_is_that_of_the_formula(networks, frozen, prompts):
  """At the sampling policy the ratio is 1, so that the gradient can be written out."""
  algo = learner(kl_coef=0.5, temperature=1.0)
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  rewards = jnp.asarray([0.0, 2, 1, 3, -1, 4, 0, 2])
  scores = dataclasses.replace(scores, reward=rewards)
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  assert estimates.returns is None
  np.testing.assert_array_equal(estimates.kl_weight, np.full(ROWS, 0.5))
  arguments = current.trainable, networks, rollout, scores, estimates
  found = trees.flatten(gradient(algo, *arguments)[0]['policy'])

  def by_hand(adapter):
    now, _ = algo.logprobs(networks, adapter, rollout.prompts, rollout.tokens)
    group = algo_rewards(algo, rollout, rewards).reshape(2, 4)
    spread = group.std(1, keepdims=True) + 1e-4
    advantages = ((group - group.mean(1, keepdims=True)) / spread).reshape(-1, 1)
    ratio = scores.reference - now
    k3 = jnp.exp(ratio) - ratio - 1
    each = -advantages * jnp.exp(now - scores.logprobs) + 0.5 * k3
    return jnp.sum(each * rollout.mask) / jnp.sum(rollout.mask)

  expected = jax.jit(jax.grad(by_hand))(state(algo).trainable['policy'])
  for name, leaf in trees.flatten(expected).items():
    np.testing.assert_allclose(found.pop(name), leaf, atol=1e-5, err_msg=name)
  assert not found


def algo_rewards(algo, rollout, rewards):
  """The settings' penalty of answers without an end, nothing else."""
  config = algo.config
  assert config.length_bonus == 0 and rollout.tokens.shape[1] == R
  return jnp.where(rollout.has_eos, rewards, rewards + config.stop_penalty)
