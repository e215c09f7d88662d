"""What is common to algorithms on policy: scores, the update, the compiled phases.

An algorithm says how a micro-batch is scored, what is estimated from the scores, and
the gradient of its losses. `rl.ppo` and `rl.grpo` do; `rl.algorithms` names them.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.objectives import policy
from vlm_rlaif_jax.rl import length_buckets, minibatches
from vlm_rlaif_jax.rl.rollout import Learner, repeat_checksum
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.state import TrainState, checksum
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Rollout, Scores

Metrics = dict[str, jax.Array]
SAMPLING, ORDER = 0, 1  # what the key of an iteration is used for


class Algorithm(Learner, abc.ABC):
  """The functions of an iteration; subclasses are dataclasses, as `Learner` is.

  Attributes:
    has_value: whether a value adapter and its head are trained beside the policy.
  """

  has_value: ClassVar[bool] = True

  @abc.abstractmethod
  def score_rows(
    self, bases: Bases, trainable: dict, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Computes what the update needs to know of the rows of a micro-batch."""

  @abc.abstractmethod
  def estimate(
    self,
    rollout: Rollout,
    scores: Scores,
    correctness: jax.Array,
    length_weight: jax.Array | float = 1.0,
    kl_coef: jax.Array | float | None = None,
  ) -> tuple[Estimates, Metrics]:
    """Estimates advantages from scores; returns them and metrics of the rollout.

    Args:
      correctness, length_weight: of `response_rewards`.
      kl_coef: weight of the KL penalty; None: that of the settings.
    """

  @abc.abstractmethod
  def gradient(
    self, trainable: dict, bases: Bases, *part: Any, **constants: Any
  ) -> tuple[dict, Metrics]:
    """Returns the gradient of the losses of a micro-batch, and its metrics.

    Args:
      part: rollout, scores and estimates of its rows.
      constants: of `step_constants`.
    """

  def step_constants(
    self, returns: jax.Array | None, mask: jax.Array
  ) -> dict[str, Any]:
    """Returns what all micro-batches of an optimizer step share, by name.

    Args:
      returns, mask: of all rows of the step, `[S / M, M, R]`.
    """
    del returns, mask
    return {}

  def score(
    self, bases: Bases, trainable: dict, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Computes `score_rows` a micro-batch at a time.

    Args:
      trainable: `{'policy': LoRA}`, and where there is a value function
        `{'value': LoRA, 'head': ScalarHead}`.
    """
    return length_buckets.in_micro_batches(
      functools.partial(self.score_rows, bases, trainable, frozen),
      repeat_checksum(rollout),
      self.config.micro_batch,
      self.config.length_buckets,
    )

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
    # [M, B / M, ...]: row m of a micro-batch is of block m, see `minibatches.choose`
    blocks = jax.tree.map(
      lambda x: x.reshape(config.micro_batch, -1, *x.shape[1:]),
      (repeat_checksum(rollout), scores, estimates),
    )
    (trainable, opt_state), stats = jax.lax.scan(
      functools.partial(self._optimizer_step, bases, blocks, rate),
      (state.trainable, state.opt_state),
      minibatches.choose(state.at_step(ORDER), config),
    )
    new = dataclasses.replace(
      state, step=state.step + 1, trainable=trainable, opt_state=opt_state
    )
    metrics = jax.tree.map(jnp.mean, stats)
    return new, {**metrics, 'adapter': checksum(trainable['policy'])}

  def _optimizer_step(
    self, bases: Bases, blocks: tuple, rate: jax.Array, carry: tuple, chosen: jax.Array
  ) -> tuple[tuple, Metrics]:
    """Takes one optimizer step, over the micro-batches of its rows.

    Args:
      blocks: rollout, scores and estimates, `[M, B / M, ...]`.
      carry: what is trained, and the state of the optimizer.
      chosen: `int32[S / M, M]`, rows of the step, of `minibatches.choose`.
    """
    config, (trainable, opt_state) = self.config, carry
    rollout, _, estimates = blocks

    # Once for all micro-batches of the step: what they count, and what they share
    if config.length_buckets:
      chosen = length_buckets.by_length(rollout.mask, chosen)
    mask = minibatches.take(rollout.mask, chosen)
    returns = estimates.returns
    if returns is not None:
      returns = minibatches.take(returns, chosen)
    constants = self.step_constants(returns, mask)

    def add(total: Any, micro: tuple) -> tuple[Any, Metrics]:
      index, weight = micro
      part = jax.tree.map(lambda x: minibatches.take(x, index), blocks)
      gradient_of = functools.partial(self.gradient, trainable, bases, **constants)
      gradient, stats = length_buckets.at_length(
        gradient_of, config.length_buckets, *part
      )
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


def response_rewards(
  config: PpoConfig,
  rollout: Rollout,
  scores: Scores,
  correctness: jax.Array,
  length_weight: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns the scores of the reward model with penalties and bonuses, `float32[B]`.

  Args:
    correctness: `float32[B]`, match with a gold answer; 0 if there is none.
    length_weight: `float32[B]` or a number, multiplies the length bonus.
  """
  length_share = jnp.sum(rollout.mask, axis=1) / config.response_tokens
  return (
    apply_stop_penalty(config, scores.reward, rollout.has_eos)
    + config.length_bonus * length_weight * length_share
    + config.correct_bonus * correctness
    + config.reward_bias
  )


def apply_stop_penalty(
  config: PpoConfig, reward: jax.Array, has_eos: jax.Array
) -> jax.Array:
  """Returns the scores, `float32[B]`; responses that do not end get the penalty.

  It is added to their score, or stands in its place (`relative_stop_penalty`).
  """
  if config.relative_stop_penalty:
    return reward + config.stop_penalty * (1.0 - has_eos)
  return jnp.where(has_eos, reward, config.stop_penalty)


def rollout_metrics(
  rollout: Rollout, scores: Scores, kl: jax.Array, rewards: jax.Array
) -> Metrics:
  """Returns the metrics of a rollout that every algorithm has.

  Args:
    kl: `float32[B, R]`, estimate of the divergence from the reference policy.
    rewards: of `response_rewards`.
  """
  difference = jnp.abs(rollout.sampler_logprobs - scores.logprobs)
  return {
    'objective/kl': jnp.mean(jnp.sum(kl, axis=1)),
    'objective/kl_token': policy.masked_mean(kl, rollout.mask),
    'objective/reward': jnp.mean(scores.reward),
    'objective/reward_with_penalties': jnp.mean(rewards),
    'objective/stopped': jnp.mean(rollout.has_eos),
    'objective/tokens': jnp.mean(jnp.sum(rollout.mask, axis=1)),
    'objective/entropy': policy.masked_mean(scores.entropy, rollout.mask),
    'sampler/logprob_gap': policy.masked_mean(difference, rollout.mask),
  }


def programs(
  learner: Algorithm, mesh: Mesh, bases: Bases, frozen: Frozen, state: TrainState
) -> dict[str, sharding.Program]:
  """Returns every phase of an iteration, compiled for a mesh; and `reward`.

  `reward` is the score of the reward model alone, for held-out prompts.

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
    has_eos=rows,
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
