"""Proximal policy optimization (Schulman et al. 2017) against a learned reward.

Four LoRA adapters on two frozen bases:

    policy, reference   on the actor's base; both start as the initialized policy
    value, reward       on the critic's base; both start as the reward model

An iteration is four pure functions. For a response y to a prompt x, with r(x, y) the
reward model's score:

    rollout   = sample     y ~ policy(. | x), and its log-probabilities
    scores    = score      log p under policy and reference, values V_t, r(x, y)
    estimates = estimate   r_t = -beta KL_t + [t is last] (r(x, y) + penalties), then
                           A_t and returns by GAE (Schulman et al. 2016)
    state     = update     epochs x minibatches of the clipped losses

The equations are in `objectives.returns` and `objectives.policy`; what the reference
implementation does otherwise is a field of `settings.ppo.PpoConfig`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.objectives import policy, returns
from vlm_rlaif_jax.rl import lengths, minibatches
from vlm_rlaif_jax.rl.rollout import Learner, with_row_checksum
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.state import TrainState, checksum
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Rollout, Scores

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PpoLearner(Learner):
  """PPO as pure functions of arrays."""

  def score(
    self, bases: Bases, trainable: dict, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Computes policy, reference, values and rewards, a micro-batch at a time.

    Args:
      trainable: `{'policy': LoRA, 'value': LoRA, 'head': ScalarHead}`.
    """

    def score_rows(rows: Rollout) -> Scores:
      prompts, tokens = rows.prompts, rows.tokens
      with jax.named_scope('score/policy'):
        logprobs, entropy = self.logprobs(bases, trainable['policy'], prompts, tokens)
      with jax.named_scope('score/reference'):
        reference, _ = self.logprobs(
          bases, frozen.reference, prompts, tokens, self.config.reference_dtype
        )
      with jax.named_scope('score/value'):
        values = self.values(
          bases, trainable['value'], trainable['head'], prompts, tokens
        )
      with jax.named_scope('score/reward'):
        reward = self.rewards(bases, frozen, prompts, tokens)
      return Scores(logprobs, reference, values, entropy, reward)

    rows, config = with_row_checksum(rollout), self.config
    return lengths.in_micro_batches(
      score_rows, rows, config.micro_batch, config.length_buckets
    )

  def estimate(
    self,
    rollout: Rollout,
    scores: Scores,
    correctness: jax.Array,
    length_weight: jax.Array | float = 1.0,
    kl_coef: jax.Array | float | None = None,
  ) -> tuple[Estimates, Metrics]:
    """Shapes rewards with the KL penalty; estimates advantages and returns.

    Args:
      correctness: `float32[B]`, agreement with a reference answer; 0 if there is none.
      length_weight: `float32[B]` or a number, multiplies the length bonus.
      kl_coef: weight of the KL penalty; None: that of the settings.
    """
    config = self.config
    kl_coef = config.kl_coef if kl_coef is None else kl_coef
    mask = rollout.mask if config.mask_pads else None
    whiten = functools.partial(
      returns.whiten, mask=mask, scope=config.whiten_scope, devices=self.devices
    )

    # Rewards a token: the KL penalty, and the response's own reward at its end.
    kl = returns.kl_estimate(scores.logprobs, scores.reference, config.kl)
    kl = kl * rollout.mask
    length_share = jnp.sum(rollout.mask, axis=1) / config.response_tokens
    terminal = (
      apply_stop_penalty(config, scores.reward, rollout.stopped)
      + config.length_bonus * length_weight * length_share
      + config.correct_bonus * correctness
      + config.reward_bias
    )
    shaped = -kl_coef * kl + returns.place_terminal(
      terminal, rollout.mask, config.terminal
    )
    scaled = (
      whiten(shaped, recenter=False)
      if config.whiten_rewards
      else config.reward_scale * shaped
    )

    # Advantages and returns.
    advantages, targets = returns.gae(
      scaled, scores.values, config.gamma, config.gae_lambda, mask
    )

    difference = jnp.abs(rollout.sampler_logprobs - scores.logprobs)
    metrics = {
      'objective/kl': jnp.mean(jnp.sum(kl, axis=1)),
      'objective/kl_token': policy.masked_mean(kl, rollout.mask),
      'objective/reward': jnp.mean(scores.reward),
      'objective/reward_with_penalties': jnp.mean(terminal),
      'objective/shaped': jnp.mean(jnp.sum(shaped, axis=1)),
      'objective/stopped': jnp.mean(rollout.stopped),
      'objective/tokens': jnp.mean(jnp.sum(rollout.mask, axis=1)),
      'objective/entropy': policy.masked_mean(scores.entropy, rollout.mask),
      'returns/mean': policy.masked_mean(targets, mask),
      'values/mean': policy.masked_mean(scores.values, mask),
      'explained_variance': returns.explained_variance(
        scores.values, targets, rollout.mask
      ),
      'sampler/logprob_gap': policy.masked_mean(difference, rollout.mask),
    }
    return Estimates(advantages=whiten(advantages), returns=targets), metrics

  def policy_loss(
    self,
    trainable: dict,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
  ) -> tuple[jax.Array, Metrics]:
    """Returns the clipped policy loss of one micro-batch and its metrics."""
    config = self.config
    mask = rollout.mask if config.mask_pads else None
    with jax.named_scope('update/policy'):
      logprobs, _ = self.logprobs(
        bases, trainable['policy'], rollout.prompts, rollout.tokens
      )
    loss, stats = policy.policy_loss(
      logprobs, scores.logprobs, estimates.advantages, config.clip_ratio, mask
    )
    stats = {f'policy/{name}': value for name, value in stats.items()}
    kl = policy.approx_kl(logprobs, scores.logprobs, mask)
    return loss, {'loss/policy': loss, 'approx_kl': kl, **stats}

  def value_loss(
    self,
    trainable: dict,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
    radius: jax.Array | float,
  ) -> tuple[jax.Array, Metrics]:
    """Returns value_coef x the clipped value loss of one micro-batch, and metrics.

    Args:
      radius: of `minibatches.value_radius`.
    """
    config = self.config
    mask = rollout.mask if config.mask_pads else None
    with jax.named_scope('update/value'):
      values = self.values(
        bases, trainable['value'], trainable['head'], rollout.prompts, rollout.tokens
      )
    loss, stats = policy.value_loss(
      values, scores.values, estimates.returns, radius, mask
    )
    stats = {f'value/{name}': value for name, value in stats.items()}
    return config.value_coef * loss, {'loss/value': loss, **stats}

  def losses(
    self, trainable: dict, bases: Bases, *part: Any, radius: jax.Array | float
  ) -> tuple[jax.Array, Metrics]:
    """Returns the clipped policy loss + value_coef x the clipped value loss.

    Args:
      part: rollout, scores and estimates of one micro-batch; they are constants.
    """
    policy_loss, policy_stats = self.policy_loss(trainable, bases, *part)
    value_loss, value_stats = self.value_loss(trainable, bases, *part, radius=radius)
    return policy_loss + value_loss, {**policy_stats, **value_stats}

  def gradient(
    self, trainable: dict, bases: Bases, *part: Any, radius: jax.Array | float
  ) -> tuple[dict, Metrics]:
    """Returns the gradient of `losses`, computed for one network after the other.

    The activations of the policy are freed before those of the value exist.

    Args:
      part, radius: as in `losses`.
    """
    rest = {name: trainable[name] for name in trainable if name != 'policy'}
    policy_gradient, policy_stats = jax.grad(self.policy_loss, has_aux=True)(
      {'policy': trainable['policy']}, bases, *part
    )
    policy_gradient, rest, part = jax.lax.optimization_barrier(
      (policy_gradient, rest, part)
    )
    value_gradient, value_stats = jax.grad(self.value_loss, has_aux=True)(
      rest, bases, *part, radius
    )
    return {**policy_gradient, **value_gradient}, {**policy_stats, **value_stats}

  def update(
    self,
    state: TrainState,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
    rate: jax.Array,
  ) -> tuple[TrainState, Metrics]:
    """Takes all optimizer steps of an iteration; what was scored stays constant.

    Args:
      rate: learning rate of this iteration.
    """
    config = self.config
    blocks = jax.tree.map(
      lambda x: x.reshape(config.micro_batch, -1, *x.shape[1:]),
      (with_row_checksum(rollout), scores, estimates),
    )
    rows_of_blocks, _, estimates_of_blocks = blocks

    def optimizer_step(carry: tuple, chosen: jax.Array) -> tuple[tuple, Metrics]:
      trainable, opt_state = carry

      # What is of the whole step: counts of tokens, and the spread of returns
      if config.length_buckets:
        chosen = lengths.by_length(rows_of_blocks.mask, chosen)
      mask = minibatches.take(rows_of_blocks.mask, chosen)
      returns_of_step = minibatches.take(estimates_of_blocks.returns, chosen)
      radius = minibatches.value_radius(returns_of_step, mask, config)

      def add(total: Any, micro: tuple) -> tuple[Any, Metrics]:
        index, weight = micro
        part = jax.tree.map(lambda x: minibatches.take(x, index), blocks)
        gradient_of = functools.partial(self.gradient, trainable, bases, radius=radius)
        gradient, stats = lengths.at_length(gradient_of, config.length_buckets, *part)
        total = optim.add_weighted(total, weight, gradient)
        return total, jax.tree.map(lambda x: weight * x, stats)

      # Gradients, accumulated over micro-batches
      zeros = jax.tree.map(jnp.zeros_like, trainable)
      micro_batches = chosen, minibatches.weights(mask, config)
      gradient, stats = jax.lax.scan(add, zeros, micro_batches)

      # Optimizer
      with jax.named_scope('update/optimizer'):
        trainable, opt_state = optim.apply_gradients(
          self.optimizer, gradient, opt_state, trainable, rate
        )
      stats = jax.tree.map(jnp.sum, stats)
      return (trainable, opt_state), {
        **stats,
        'gradient_norm': optax.tree.norm(gradient),
      }

    (trainable, opt_state), stats = jax.lax.scan(
      optimizer_step,
      (state.trainable, state.opt_state),
      minibatches.choose(state.at_step(1), config),
    )
    new = dataclasses.replace(
      state, step=state.step + 1, trainable=trainable, opt_state=opt_state
    )
    metrics = jax.tree.map(jnp.mean, stats)
    return new, {**metrics, 'adapter': checksum(trainable['policy'])}


def apply_stop_penalty(
  config: PpoConfig, reward: jax.Array, stopped: jax.Array
) -> jax.Array:
  """Returns the scores with the penalty of responses that do not end, `float32[B]`."""
  if config.relative_stop_penalty:
    return reward + config.stop_penalty * (1.0 - stopped)
  return jnp.where(stopped, reward, config.stop_penalty)


def programs(
  learner: PpoLearner, mesh: Mesh, bases: Bases, frozen: Frozen, state: TrainState
) -> dict[str, sharding.Program]:
  """Returns every phase of an iteration, compiled for a mesh.

  Args:
    bases, frozen, state: arrays, or shapes with shardings.
  """
  everywhere: Any = sharding.replicated(mesh)
  rows: Any = sharding.by_batch(mesh)
  bases, frozen, state = sharding.layout_of((bases, frozen, state))
  trainable = state.trainable
  rollout = Rollout(
    prompts=rows,
    tokens=rows,
    mask=rows,
    sampler_logprobs=rows,
    stopped=rows,
    adapter=everywhere,
  )
  estimate_inputs = rollout, rows, rows, rows, everywhere
  phases = (
    ('score', learner.score, (bases, trainable, frozen, rollout), rows),
    ('estimate', learner.estimate, estimate_inputs, (rows, everywhere)),
    ('reward', learner.rewards, (bases, frozen, rows, rows), rows),
  )
  rollout_program = sharding.Program(
    'rollout',
    learner.sample,
    mesh,
    (bases, trainable['policy'], rows, everywhere),
    rollout,
    options=sharding.decoding_options(mesh),
  )
  update = sharding.Program(
    'update',
    learner.update,
    mesh,
    (state, bases, rollout, rows, rows, everywhere),
    (state, everywhere),
    donate=(0,),
    options=sharding.gradient_options(mesh),
  )
  return {
    'rollout': rollout_program,
    **{
      name: sharding.Program(name, function, mesh, inputs, outputs)
      for name, function, inputs, outputs in phases
    },
    'update': update,
  }
