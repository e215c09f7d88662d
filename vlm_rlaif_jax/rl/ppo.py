"""PPO as pure functions of arrays."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference import decoding, sampler, scoring
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import policy, returns
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.state import TrainState, checksum
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Prompts, Rollout, Scores


@dataclasses.dataclass(frozen=True)
class PpoLearner:
  """PPO as pure functions of arrays; hashable, so that each is compiled once."""

  actor: Vlm  # with the adapter of policy and reference
  critic: Vlm  # with the adapter of value and reward
  ppo: PpoConfig
  optimizer: optax.GradientTransformation
  eos: int
  stops: tuple[int, ...]  # further ids that end an answer
  suffix: tuple[int, ...]  # ids of the reward prompt
  devices: int

  @property
  def sampling(self) -> sampler.Sampling:
    return sampler.Sampling(
      self.ppo.response_tokens,
      self.ppo.temperature,
      eos=self.eos,
      suppress=(scoring.PAD,) if self.ppo.unknown == 'suppress' else (),
    )

  def sample(self, bases_: Bases, adapter, batch: Prompts, key) -> Rollout:
    """The policy answers every prompt; what follows a stop is cut off."""
    variables = {'params': bases_.actor, 'lora': adapter}
    weights = decoding.held(self.actor, variables, self.ppo.rollout_weights)

    def one(part: Prompts):
      return decoding.sample(
        self.actor,
        weights,
        part.ids,
        part.valid,
        part.actor,
        sampler.example_keys(key, part.number),
        self.sampling,
      )

    at_once = self.ppo.sample_batch or batch.ids.shape[0]
    answers = scoring.in_micro_batches(one, batch, at_once)
    tokens, stopped = scoring.cut(
      answers.tokens, self.eos, self.stops, self.ppo.stop_at
    )
    mask = tokens != scoring.PAD
    return Rollout(
      prompts=batch,
      tokens=tokens,
      mask=mask,
      sampled=jnp.where(mask, answers.logprobs, 0.0),
      stopped=stopped,
      adapter=checksum(adapter),
    )

  def logprobs(
    self,
    bases_: Bases,
    adapter,
    batch: Prompts,
    tokens,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
  ):
    """log p and entropy of given answers under an adapter, `float32[B, R]`."""
    hidden = scoring.response_hidden(
      self.actor, bases_.actor, adapter, batch.ids, batch.valid, batch.actor, tokens
    )
    return scoring.response_logprobs(
      self.actor,
      bases_.actor,
      hidden,
      tokens,
      self.ppo.temperature,
      self.sampling.suppress,
      self.ppo.logit_chunk,
      dtype,
    )

  def values(self, bases_: Bases, adapter, head, batch: Prompts, tokens):
    """V of the state before every answer token, `float32[B, R]`."""
    hidden = scoring.response_hidden(
      self.critic, bases_.critic, adapter, batch.ids, batch.valid, batch.critic, tokens
    )
    return head(hidden)

  def rewards(self, bases_: Bases, frozen: Frozen, batch: Prompts, tokens):
    """The reward model's score of every answer, `float32[B]`."""
    return scoring.reward_model_score(
      self.critic,
      bases_.critic,
      frozen.reward,
      frozen.reward_head,
      batch.ids,
      batch.critic,
      tokens,
      jnp.asarray(self.suffix, jnp.int32),
    )

  def evaluate(
    self, bases_: Bases, trainable, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Policy, reference, value and reward on the answers, a micro-batch at a time."""

    def one(part: Rollout) -> Scores:
      batch, tokens = part.prompts, part.tokens
      with jax.named_scope('score/policy'):
        logprobs, entropy = self.logprobs(bases_, trainable['policy'], batch, tokens)
      with jax.named_scope('score/reference'):
        reference, _ = self.logprobs(
          bases_, frozen.reference, batch, tokens, self.ppo.reference_dtype
        )
      with jax.named_scope('score/value'):
        values = self.values(
          bases_, trainable['value'], trainable['head'], batch, tokens
        )
      with jax.named_scope('score/reward'):
        reward = self.rewards(bases_, frozen, batch, tokens)
      return Scores(
        logprobs=logprobs,
        reference=reference,
        values=values,
        entropy=entropy,
        reward=reward,
      )

    rows = _by_row(rollout)
    return scoring.in_micro_batches(one, rows, self.ppo.micro_batch)

  def estimate(
    self, rollout: Rollout, scores: Scores, gold, length_weight=1.0
  ) -> tuple[Estimates, dict]:
    """KL-shaped rewards, then generalized advantages and returns.

    Args:
      gold: `float32[B]`, agreement with a gold answer; 0 where there is none.
      length_weight: `float32[B]` or a number, on the length bonus.
    """
    ppo = self.ppo
    mask = rollout.mask if ppo.mask_pads else None
    kl = returns.kl_estimate(scores.logprobs, scores.reference, ppo.kl) * rollout.mask
    reward = apply_stop_penalty(ppo, scores.reward, rollout.stopped)
    used = jnp.sum(rollout.mask, axis=1) / ppo.response_tokens
    terminal = (
      reward
      + ppo.length_bonus * length_weight * used
      + ppo.correct_bonus * gold
      + ppo.reward_bias
    )
    shaped = -ppo.kl_coef * kl + returns.place_terminal(
      terminal, rollout.mask, ppo.terminal
    )
    whiten = functools.partial(
      returns.whiten, mask=mask, scope=ppo.whiten_scope, devices=self.devices
    )
    scaled = (
      whiten(shaped, recenter=False)
      if ppo.whiten_rewards
      else ppo.reward_scale * shaped
    )
    advantages, target = returns.gae(
      scaled, scores.values, ppo.gamma, ppo.gae_lambda, mask
    )
    metrics = {
      'objective/kl': jnp.mean(jnp.sum(kl, axis=1)),
      'objective/kl_token': policy.masked_mean(kl, rollout.mask),
      'objective/reward': jnp.mean(scores.reward),
      'objective/reward_with_penalties': jnp.mean(terminal),
      'objective/shaped': jnp.mean(jnp.sum(shaped, axis=1)),
      'objective/stopped': jnp.mean(rollout.stopped),
      'objective/tokens': jnp.mean(jnp.sum(rollout.mask, axis=1)),
      'objective/entropy': policy.masked_mean(scores.entropy, rollout.mask),
      'returns/mean': policy.masked_mean(target, mask),
      'values/mean': policy.masked_mean(scores.values, mask),
      'sampler/logprob_gap': policy.masked_mean(
        jnp.abs(rollout.sampled - scores.logprobs), rollout.mask
      ),
    }
    return Estimates(advantages=whiten(advantages), returns=target), metrics

  def policy_loss(self, trainable, bases_, rollout, scores, estimates):
    """The clipped loss of the policy on one micro-batch, and what is logged of it."""
    ppo = self.ppo
    mask = rollout.mask if ppo.mask_pads else None
    with jax.named_scope('update/policy'):
      logprobs, _ = self.logprobs(
        bases_, trainable['policy'], rollout.prompts, rollout.tokens
      )
    loss, stats = policy.policy_loss(
      logprobs, scores.logprobs, estimates.advantages, ppo.clip_ratio, mask
    )
    stats = {f'policy/{name}': value for name, value in stats.items()}
    return loss, {'loss/policy': loss, **stats}

  def value_loss(self, trainable, bases_, rollout, scores, estimates):
    """value_coef x the clipped loss of the values, and what is logged of it."""
    ppo = self.ppo
    mask = rollout.mask if ppo.mask_pads else None
    with jax.named_scope('update/value'):
      values = self.values(
        bases_, trainable['value'], trainable['head'], rollout.prompts, rollout.tokens
      )
    radius = ppo.clip_value
    if ppo.clip_value_by == 'std':
      radius = radius * jnp.std(estimates.returns)
    loss, stats = policy.value_loss(
      values, scores.values, estimates.returns, radius, mask
    )
    stats = {f'value/{name}': value for name, value in stats.items()}
    return ppo.value_coef * loss, {'loss/value': loss, **stats}

  def losses(self, trainable, bases_, *part):
    """Both, added: what a step descends."""
    first, stats = self.policy_loss(trainable, bases_, *part)
    second, more = self.value_loss(trainable, bases_, *part)
    return first + second, {**stats, **more}

  def gradient(self, trainable, bases_, *part):
    """Of both losses, one network after the other: what one keeps for its way back is
    gone before the other begins."""
    rest = {name: trainable[name] for name in trainable if name != 'policy'}
    first, stats = jax.grad(self.policy_loss, has_aux=True)(
      {'policy': trainable['policy']}, bases_, *part
    )
    first, rest, part = jax.lax.optimization_barrier((first, rest, part))
    second, more = jax.grad(self.value_loss, has_aux=True)(rest, bases_, *part)
    return {**first, **second}, {**stats, **more}

  def update(
    self, state: TrainState, bases_: Bases, rollout, scores, estimates, rate
  ) -> tuple[TrainState, dict]:
    """All optimizer steps of one iteration; the old quantities stay fixed."""
    ppo = self.ppo
    micro = ppo.micro_batch
    parts = ppo.rollout_batch // micro
    accumulate = ppo.step_batch // micro
    rows = _by_row(rollout)
    # Row b * parts + a is in group b; a shuffle permutes within groups, so that no row
    # leaves its device and the result does not depend on how many there are.
    grouped = jax.tree.map(
      lambda x: x.reshape(micro, parts, *x.shape[1:]), (rows, scores, estimates)
    )

    def optimizer_step(carry, chosen):  # chosen: int32[accumulate, micro]
      trainable, opt_state = carry

      def add(total, index):
        part = jax.tree.map(
          lambda x: jax.vmap(lambda row, i: row[i])(x, index), grouped
        )
        gradient, stats = self.gradient(trainable, bases_, *part)
        return jax.tree.map(jnp.add, total, gradient), stats

      zeros = jax.tree.map(jnp.zeros_like, trainable)
      gradient, stats = jax.lax.scan(add, zeros, chosen)
      gradient = jax.tree.map(lambda g: g / accumulate, gradient)
      with jax.named_scope('update/optimizer'):
        trainable, opt_state = optim.apply_gradients(
          self.optimizer, gradient, opt_state, trainable, rate
        )
      stats = {**stats, 'gradient_norm': optax.tree.norm(gradient)}
      return (trainable, opt_state), jax.tree.map(jnp.mean, stats)

    keys = jax.random.split(state.at_step(1), ppo.epochs)
    order = jax.vmap(lambda key: _group_orders(key, micro, parts))(keys)
    chosen = order.reshape(-1, accumulate, micro)  # [epochs x steps, accumulate, micro]
    (trainable, opt_state), stats = jax.lax.scan(
      optimizer_step, (state.trainable, state.opt_state), chosen
    )
    new = dataclasses.replace(
      state, step=state.step + 1, trainable=trainable, opt_state=opt_state
    )
    metrics = jax.tree.map(jnp.mean, stats)
    return new, {**metrics, 'adapter': checksum(trainable['policy'])}


def programs(
  algorithm: PpoLearner, mesh, networks: Bases, frozen: Frozen, state: TrainState
) -> dict[str, sharding.Program]:
  """Every phase of an iteration on a mesh.

  Args:
    networks, frozen, state: arrays, or shapes that carry a layout.
  """
  whole: Any = sharding.replicated(mesh)
  rows: Any = sharding.by_batch(mesh)
  networks, frozen, state = sharding.layout_of((networks, frozen, state))
  answers = Rollout(
    prompts=rows, tokens=rows, mask=rows, sampled=rows, stopped=rows, adapter=whole
  )
  make = lambda name, function, inputs, outputs, *more: sharding.Program(
    name, function, mesh, inputs, outputs, *more
  )
  trainable = state.trainable
  return {
    'rollout': make(
      'rollout',
      algorithm.sample,
      (networks, trainable['policy'], rows, whole),
      answers,
      (),
      sharding.decoding_options(mesh),
    ),
    'score': make(
      'score', algorithm.evaluate, (networks, trainable, frozen, answers), rows
    ),
    'estimate': make(
      'estimate', algorithm.estimate, (answers, rows, rows, rows), (rows, whole)
    ),
    'update': make(
      'update',
      algorithm.update,
      (state, networks, answers, rows, rows, whole),
      (state, whole),
      (0,),
      sharding.gradient_options(mesh),
    ),
    'reward': make('reward', algorithm.rewards, (networks, frozen, rows, rows), rows),
  }


def _by_row(rollout: Rollout) -> Rollout:
  """With a checksum a row, so that all leaves have the batch axis."""
  return dataclasses.replace(
    rollout, adapter=jnp.broadcast_to(rollout.adapter, rollout.stopped.shape)
  )


def _group_orders(key, groups: int, members: int):
  """`int32[members, groups]`: for every group its members in a random order."""
  uniform = jax.random.uniform(key, (groups, members))
  return jnp.argsort(uniform, axis=1).T


def apply_stop_penalty(ppo: PpoConfig, reward, stopped):
  """The score and what an answer without end of sequence costs, `float32[B]`."""
  if ppo.relative_stop_penalty:
    return reward + ppo.stop_penalty * (1.0 - stopped)
  return jnp.where(stopped, reward, ppo.stop_penalty)
