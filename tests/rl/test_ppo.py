"""The learner on a network of two layers: roles, quirks, and what an update does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ppo import PRESETS
from tests.rl.learner import (
  ROWS,
  R,
  algorithm,
  gradient,
  losses,
  rolled,
  rollout_of,
  score,
  scores_like,
  state,
  up_to,
  update,
)
from tests.tiny import CFG, random_adapter, random_params
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.rl import minibatches
from vlm_rlaif_jax.rl.algorithm import apply_stop_penalty
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.settings.sections import MeshConfig, QuantConfig
from vlm_rlaif_jax.train.state import checksum
from vlm_rlaif_jax.types import Bases, Estimates
from vlm_rlaif_jax.weights import placement


@pytest.mark.parametrize('preset', sorted(PRESETS))
@pytest.mark.slow
def test_an_untouched_policy_is_its_own_reference(networks, frozen, prompts, preset):
  algo = algorithm(preset)
  _, rollout, scores = rolled(algo, networks, frozen, prompts)
  np.testing.assert_array_equal(scores.logprobs, scores.reference)
  np.testing.assert_array_equal(scores.values, 0)  # a head of zeros (B05)
  _, metrics = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  assert float(metrics['objective/kl']) == 0
  assert float(metrics['sampler/logprob_gap']) < 1e-4


@pytest.mark.slow
def test_four_roles_are_four_answers(networks, frozen, prompts):
  """Reference and policy, value and reward differ as soon as their adapters do."""
  algo = algorithm()
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  other = {
    **current.trainable,
    'policy': random_adapter(7),
    'head': heads.init_head(jax.random.key(8), CFG.llama.width),
  }
  moved = score(algo, networks, other, frozen, rollout)
  assert np.abs(np.asarray(moved.logprobs - scores.logprobs)).max() > 1e-3
  np.testing.assert_array_equal(moved.reference, scores.reference)
  np.testing.assert_array_equal(moved.reward, scores.reward)
  assert np.abs(np.asarray(moved.values)).max() > 1e-3


@pytest.mark.slow
def test_micro_batches_score_alike(networks, frozen, prompts):
  algo = algorithm()
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  whole = dataclasses.replace(
    algo, config=dataclasses.replace(algo.config, micro_batch=8, step_batch=8)
  )
  again = score(whole, networks, current.trainable, frozen, rollout)
  for a, b in zip(jax.tree.leaves(scores), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_stop_penalty():
  """The reference's penalty: relative, -8, scores (1, 2) with and without a stop."""
  reward, has_eos = jnp.array([1.0, 2.0]), jnp.array([True, False])
  np.testing.assert_array_equal(
    apply_stop_penalty(PpoConfig(stop_penalty=-8.0), reward, has_eos), [1, -6]
  )
  absolute = PpoConfig(stop_penalty=-8.0, relative_stop_penalty=False)
  np.testing.assert_array_equal(apply_stop_penalty(absolute, reward, has_eos), [1, -8])


def test_reward_terms_land_where_the_preset_says(prompts):
  lengths, has_eos = [3] * 4 + [6] * 4, [True] * 4 + [False] * 4
  for preset, place, scale in (('parity', 5, 10.0), ('masked', 2, 1.0)):
    algo = algorithm(
      preset, gamma=0.0, gae_lambda=0.0, length_bonus=-10.0, stop_penalty=-8.0
    )
    rollout = rollout_of(prompts, 5, up_to(lengths), has_eos)
    scores = scores_like(rollout.mask, reward=jnp.arange(8.0))
    estimates, metrics = algo.estimate(rollout, scores, jnp.zeros(8))
    target = np.asarray(estimates.returns)
    row = np.zeros(R)
    row[place] = scale * (1.0 - 10.0 * 3 / R)
    np.testing.assert_allclose(target[1], row, rtol=1e-6)
    row = np.zeros(R)
    row[5] = scale * (7.0 - 8.0 - 10.0)
    np.testing.assert_allclose(target[7], row, rtol=1e-6)
    assert float(metrics['objective/reward']) == 3.5


def test_pads_move_the_statistics_in_parity_only(prompts):
  """Register B10."""
  lengths = [1, 2, 3, 4, 5, 6, 6, 6]
  for preset, keeps in (('parity', False), ('masked', True)):
    algo = algorithm(preset)
    rollout = rollout_of(prompts, 5, up_to(lengths))
    scores = scores_like(rollout.mask, reward=jnp.arange(8.0))
    estimates, _ = algo.estimate(rollout, scores, jnp.zeros(8))
    mask = np.asarray(rollout.mask)
    advantages = np.asarray(estimates.advantages)
    assert (not advantages[~mask].any()) is keeps
    real = advantages[mask] if keeps else advantages
    assert abs(real.mean()) < 1e-5 and abs(real.std() - 1) < 1e-4


@pytest.mark.slow
def test_an_update_moves_policy_value_and_head_and_nothing_else(
  networks, frozen, prompts
):
  algo = algorithm()
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  scores = dataclasses.replace(scores, reward=jnp.arange(8.0))
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  new, metrics = update(algo, current, networks, rollout, scores, estimates, 1e-3)
  assert int(new.step) == 1
  for name in ('policy', 'value', 'head'):
    before, after = checksum(current.trainable[name]), checksum(new.trainable[name])
    assert int(before) != int(after), name
  assert int(metrics['adapter']) == int(checksum(new.trainable['policy']))
  assert float(metrics['gradient_norm']) > 0


@pytest.mark.parametrize('preset', sorted(PRESETS))
@pytest.mark.slow
def test_gradients_of_policy_and_value_apart_are_those_of_the_sum(
  networks, frozen, prompts, preset
):
  algo = algorithm(preset)
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  scores = dataclasses.replace(scores, reward=jnp.arange(8.0))
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  trainable = {
    **current.trainable,
    'policy': random_adapter(7),
    'head': heads.init_head(jax.random.key(8), CFG.llama.width),
  }
  arguments = trainable, networks, rollout, scores, estimates
  together = jax.grad(functools.partial(algo.losses, radius=0.2), has_aux=True)
  found, stats = gradient(algo, *arguments, radius=0.2)
  expected, metrics = jax.jit(together)(*arguments)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found['head']))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (found, stats),
    (expected, metrics),
  )


@pytest.mark.slow
def test_updates_raise_the_likelihood_of_what_was_rewarded(networks, frozen, prompts):
  algo = algorithm(kl_coef=0.0, length_bonus=0.0, stop_penalty=0.0)
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  good = jnp.arange(8) % 2
  scores = dataclasses.replace(scores, reward=good * 2.0 - 1)
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  new = current
  for _ in range(4):
    new, _ = update(algo, new, networks, rollout, scores, estimates, 3e-3)
  after = score(algo, networks, new.trainable, frozen, rollout)
  change = np.asarray(jnp.sum(after.logprobs - scores.logprobs, axis=1))
  assert change[1::2].mean() > change[::2].mean()


@pytest.mark.slow
def test_bases_may_be_held_in_4_bits_each_in_its_own_way(frozen, prompts):
  """Sampler and trainer agree, an update trains, and the packed bases stay."""
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])

  def held(seed, residency):
    llama = jax.tree.map(np.asarray, random_params(seed)['llama'])
    return placement.on_device(
      {'llama': llama}, CFG, mesh, quant=QuantConfig(residency=residency, group=4)
    )

  networks = Bases(actor=held(0, 'nf4'), critic=held(9, 'int4'))
  algo = algorithm()
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  estimates, metrics = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  assert float(metrics['sampler/logprob_gap']) < 1e-4
  new, stats = update(algo, current, networks, rollout, scores, estimates, 1e-3)
  assert float(stats['gradient_norm']) > 0
  for name in ('policy', 'value'):
    before, after = checksum(current.trainable[name]), checksum(new.trainable[name])
    assert int(before) != int(after), name


@pytest.mark.slow
def test_a_rate_of_zero_changes_nothing(networks, frozen, prompts):
  """Register B13: the first iteration only fills the moments."""
  algo = algorithm()
  current, rollout, scores = rolled(algo, networks, frozen, prompts)
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  new, _ = update(algo, current, networks, rollout, scores, estimates, 0.0)
  for a, b in zip(
    jax.tree.leaves(current.trainable), jax.tree.leaves(new.trainable), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_reference_numerics_is_a_flag(networks, frozen, prompts):
  """Register B16: a reference scored in bfloat16 alone gives a positive KL."""
  algo = algorithm('parity', reference_dtype='bfloat16')
  _, rollout, scores = rolled(algo, networks, frozen, prompts)
  assert (scores.logprobs != scores.reference).any()
  _, metrics = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  assert float(metrics['objective/kl']) > 0


@pytest.mark.slow
def test_a_relative_value_clip(networks, prompts):
  """Register B12: values that moved by 1 towards returns of the order of 1,000."""
  returns = 1000 + 100 * jnp.arange(8.0)[:, None] * jnp.ones((8, R))
  estimates = Estimates(advantages=jnp.zeros((8, R)), returns=returns)
  for by, share in (('absolute', 1.0), ('std', 0.0)):
    algo = algorithm('parity', clip_value_by=by, clip_value=0.2)
    mask = jnp.ones((ROWS, R), bool)
    rollout = rollout_of(prompts, 5, mask)
    scores = scores_like(mask, values=-jnp.ones(mask.shape))  # the head gives 0
    radius = minibatches.value_radius(returns, mask, algo.config)
    _, metrics = losses(
      algo, state(algo).trainable, networks, rollout, scores, estimates, radius=radius
    )
    assert float(metrics['value/clip_share']) == share
