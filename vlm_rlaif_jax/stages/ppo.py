"""PPO against the learned reward: four adapters on two frozen bases.

    policy, reference   on the actor's base; both start as the initialised policy
    value, reward       on the critic's base; both start as the reward model

An iteration is four pure functions:

    rollout   = sample(...)      answers, log-probabilities, mask
    scores    = evaluate(...)    reference, values, reward
    estimates = estimate(...)    KL-shaped rewards, advantages, returns
    state     = update(...)      epochs x minibatches of the clipped losses
"""

import dataclasses
import functools
import json
import pathlib
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm_rlaif_jax import decode, scoring
from vlm_rlaif_jax.config.build import UserError
from vlm_rlaif_jax.config.models import LoraConfig
from vlm_rlaif_jax.config.stages import Gate, Ppo, PpoRun, RewardPrompt
from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.data import examples, pairs, prompts, sources
from vlm_rlaif_jax.data import gold as golds
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import policy, returns
from vlm_rlaif_jax.train import (
  artefacts,
  bases,
  flops,
  layouts,
  loop,
  optim,
  records,
  report,
)
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.metrics import Compilations, Metrics, rewind
from vlm_rlaif_jax.train.profile import Profiler
from vlm_rlaif_jax.train.state import TrainState, checksum, copy
from vlm_rlaif_jax.train.workspace import Workspace
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Prompts, Rollout, Scores

SAMPLES = 'samples.jsonl'  # below the folder of the stage: answers to read


class SamplerError(UserError):
  """Sampler and trainer differ by more than `ppo.logprob_gap`."""


# ---------------------------------------------------------------- the algorithm


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """PPO as pure functions of arrays; hashable, so that each is compiled once."""

  actor: Vlm  # with the adapter of policy and reference
  critic: Vlm  # with the adapter of value and reward
  ppo: Ppo
  optimizer: optax.GradientTransformation
  eos: int
  stops: tuple[int, ...]  # further ids that end an answer
  suffix: tuple[int, ...]  # ids of the reward prompt
  devices: int

  @property
  def sampling(self) -> decode.Sampling:
    return decode.Sampling(
      self.ppo.response_tokens,
      self.ppo.temperature,
      eos=self.eos,
      suppress=(scoring.PAD,) if self.ppo.unknown == 'suppress' else (),
    )

  def sample(self, bases_: Bases, adapter, batch: Prompts, key) -> Rollout:
    """The policy answers every prompt; what follows a stop is cut off."""

    def one(part: Prompts):
      return decode.sample(
        self.actor,
        {'params': bases_.actor, 'lora': adapter},
        part.ids,
        part.valid,
        part.actor,
        decode.example_keys(key, part.number),
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
    hidden = scoring.answer_hidden(
      self.actor, bases_.actor, adapter, batch.ids, batch.valid, batch.actor, tokens
    )
    return scoring.answer_log_probabilities(
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
    hidden = scoring.answer_hidden(
      self.critic, bases_.critic, adapter, batch.ids, batch.valid, batch.critic, tokens
    )
    return head(hidden)

  def rewards(self, bases_: Bases, frozen: Frozen, batch: Prompts, tokens):
    """The reward model's score of every answer, `float32[B]`."""
    return scoring.answer_reward(
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
    """KL-shaped rewards, then generalised advantages and returns.

    Args:
      gold: `float32[B]`, agreement with a gold answer; 0 where there is none.
      length_weight: `float32[B]` or a number, on the length bonus.
    """
    ppo = self.ppo
    mask = rollout.mask if ppo.mask_pads else None
    kl = returns.kl_estimate(scores.logprobs, scores.reference, ppo.kl) * rollout.mask
    reward = answer_reward(ppo, scores.reward, rollout.stopped)
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
      whiten(shaped, recentre=False)
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

  def losses(self, trainable, bases_, rollout, scores, estimates):
    """Clipped policy loss + value_coef x clipped value loss of one micro-batch."""
    ppo = self.ppo
    mask = rollout.mask if ppo.mask_pads else None
    with jax.named_scope('update/policy'):
      logprobs, _ = self.logprobs(
        bases_, trainable['policy'], rollout.prompts, rollout.tokens
      )
    with jax.named_scope('update/value'):
      values = self.values(
        bases_, trainable['value'], trainable['head'], rollout.prompts, rollout.tokens
      )
    policy_loss, policy_stats = policy.policy_loss(
      logprobs, scores.logprobs, estimates.advantages, ppo.clip_ratio, mask
    )
    radius = ppo.clip_value
    if ppo.clip_value_by == 'std':
      radius = radius * jnp.std(estimates.returns)
    value_loss, value_stats = policy.value_loss(
      values, scores.values, estimates.returns, radius, mask
    )
    loss = policy_loss + ppo.value_coef * value_loss
    return loss, {
      'loss/policy': policy_loss,
      'loss/value': value_loss,
      **{f'policy/{name}': value for name, value in policy_stats.items()},
      **{f'value/{name}': value for name, value in value_stats.items()},
    }

  def update(
    self, state: TrainState, bases_: Bases, rollout, scores, estimates, rate
  ) -> tuple[TrainState, dict]:
    """All optimiser steps of one iteration; the old quantities stay fixed."""
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
    gradient_of = jax.grad(self.losses, has_aux=True)

    def optimiser_step(carry, chosen):  # chosen: int32[accumulate, micro]
      trainable, opt_state = carry

      def add(total, index):
        part = jax.tree.map(
          lambda x: jax.vmap(lambda row, i: row[i])(x, index), grouped
        )
        gradient, stats = gradient_of(trainable, bases_, *part)
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
      optimiser_step, (state.trainable, state.opt_state), chosen
    )
    new = dataclasses.replace(
      state, step=state.step + 1, trainable=trainable, opt_state=opt_state
    )
    metrics = jax.tree.map(jnp.mean, stats)
    return new, {**metrics, 'adapter': checksum(trainable['policy'])}


def programs(
  algorithm: Algorithm, mesh, networks: Bases, frozen: Frozen, state: TrainState
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


def answer_reward(ppo: Ppo, reward, stopped):
  """The score and what an answer without end of sequence costs, `float32[B]`."""
  if ppo.relative_stop_penalty:
    return reward + ppo.stop_penalty * (1.0 - stopped)
  return jnp.where(stopped, reward, ppo.stop_penalty)


# ---------------------------------------------------------------- the run


def initial_value(settings: PpoRun, lora: LoraConfig, frozen: Frozen) -> dict:
  """Adapter and head of the value function, from the reward model or anew."""
  dtype, key = settings.optim.adapter_dtype, jax.random.key(settings.seed)
  return {
    'value': copy(trees.cast(frozen.reward, dtype))
    if settings.ppo.value_adapter_init == 'reward'
    else bases.init_adapter(settings.critic, lora, key, dtype),
    'head': copy(frozen.reward_head)
    if settings.ppo.value_head_init == 'reward'
    else heads.init_head(key, settings.critic.llama.width, 'zero'),
  }


def run(settings: PpoRun, workdir: str | pathlib.Path) -> dict:
  """Improves the initialised policy; leaves the adapters of policy and value."""
  space = Workspace(settings, workdir)
  check_gate(settings, space)
  ppo = settings.ppo
  for name in ('micro_batch', 'sample_batch'):
    sharding.check_batch(getattr(ppo, name), space.mesh, f'config.ppo.{name}')
  actor_base, critic_base = _tuned_bases(settings, space)
  init = artefacts.load(
    space.artefact('init', settings.init), 'init', actor_base.fingerprint
  )
  reward = artefacts.load(
    space.artefact('reward', settings.reward, settings.critic_size),
    'reward',
    critic_base.fingerprint,
  )
  check_scoring(reward, settings.scoring)
  tokenizer = actor_base.tokenizer
  actor_lora, critic_lora = bases.lora_of(init), bases.lora_of(reward)
  actor, critic = Vlm(settings.model, actor_lora), Vlm(settings.critic, critic_lora)

  questions = _Questions(settings, space, actor, critic, actor_base, critic_base)
  total = ppo.iterations or len(questions.train) // ppo.rollout_batch
  algorithm = Algorithm(
    actor=actor,
    critic=critic,
    ppo=ppo,
    optimizer=optim.make_optimizer(settings.optim),
    eos=tokenizer.eos,
    stops=() if ppo.stop_at == 'eos' else stop_ids(tokenizer, ppo.stop_texts),
    suffix=tuple(int(i) for i in pairs.prompt_ids(tokenizer, settings.scoring)),
    devices=sharding.batch_shards(space.mesh),
  )
  networks = _networks(settings, space, actor_base, critic_base)
  reward_head = heads.ScalarHead(
    **{k: jnp.asarray(v, jnp.float32) for k, v in reward.parts['head'].items()}
  )
  of_actor = layouts.adapter(settings.model, actor_lora, space.mesh)
  of_critic = layouts.adapter(settings.critic, critic_lora, space.mesh)
  of_head = layouts.head(space.mesh)
  frozen = sharding.put(
    Frozen(init.parts['lora'], reward.parts['lora'], reward_head),
    Frozen(of_actor, of_critic, of_head),
  )
  dtype = settings.optim.adapter_dtype
  trainable = {
    'policy': copy(trees.cast(frozen.reference, dtype)),
    **initial_value(settings, critic_lora, frozen),
  }
  state = layouts.start(
    trainable,
    {'policy': of_actor, 'value': of_critic, 'head': of_head},
    algorithm.optimizer,
    settings.seed,
    space.mesh,
  )
  shared = networks.actor is networks.critic
  report.layout(
    space.folder / 'layout.txt',
    {
      'bases' if shared else "actor's base": networks.actor,
      **({} if shared else {"critic's base": networks.critic}),
      'reference and reward': frozen,
      'policy and value': state.trainable,
      'optimiser': state.opt_state,
    },
  )
  state, history = _iterate(
    settings, space, algorithm, networks, frozen, state, questions, total
  )

  artefact = artefacts.Artefact(
    {
      'lora': sharding.to_host(state.trainable['policy']),
      'value': sharding.to_host(state.trainable['value']),
      'value_head': dataclasses.asdict(sharding.to_host(state.trainable['head'])),
    },
    {
      'stage': 'ppo',
      'base': actor_base.fingerprint,
      'critic_base': critic_base.fingerprint,
      **origins(settings, space),
      'lora': init.info['lora'],
      'critic_lora': reward.info['lora'],
      'template': prompts.TEMPLATE,
    },
  )
  artefacts.save(space.folder / 'artefact', artefact)
  summary = {
    'stage': 'ppo',
    'lineage': settings.lineage,
    'iterations': total,
    'prompts': len(questions.train),
    'too_long': questions.too_long,
    'skipped': space.skipped.reasons,
    'trainable': trees.size(state.trainable),
    'bases': {
      'actor': bases.held_bytes(networks.actor, settings.quant),
      'critic': bases.held_bytes(networks.critic, settings.critic_quant),
      'shared': shared,
    },
    **history,
    'artefact': str(space.folder / 'artefact'),
    'fingerprint': artefact.fingerprint,
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def _iterate(settings, space, algorithm, networks, frozen, state, questions, total):
  """The loop: sample, evaluate, estimate, update; follow the held-out reward."""
  ppo = settings.ppo
  checkpointer = Checkpointer(
    space.folder,
    settings.checkpoint,
    records.identity(settings, questions.fingerprint, total_steps=total),
  )
  restored = checkpointer.restore(state)
  history: dict = {}
  if restored is not None:
    state, history = restored
  start = int(state.step)
  metrics = Metrics(space.folder, settings.log.tensorboard, start)
  rewind(space.folder / SAMPLES, start, 'iteration')
  rate = optim.learning_rate(settings.optim, total)
  phases = programs(algorithm, space.mesh, networks, frozen, state)
  sample, evaluate, estimate, update, reward = (
    phases[name] for name in ('rollout', 'score', 'estimate', 'update', 'reward')
  )
  compilations, meter = Compilations(), flops.Meter()
  profiler = Profiler(settings.profile, space.folder, phases.values())

  def follow(step: int) -> None:
    """Mean reward on held-out prompts; the same draws every time."""
    scored, quality = [], []
    for batch, items in questions.held_out():
      rollout = sample(networks, state.trainable['policy'], batch, jax.random.key(7))
      scores = sharding.to_host(reward(networks, frozen, batch, rollout.tokens))
      scored += list(scores[: len(items)])
      quality += questions.quality(items, sharding.to_host(rollout.tokens))
    row = {'held_out/reward': float(np.mean(scored))}
    if quality:
      row['held_out/true_quality'] = float(np.mean(quality))
    metrics.write(step, row)
    for name, value in row.items():
      history.setdefault(name, {})[str(step)] = value

  if start == 0:
    follow(0)
  with loop.stop_requests() as stop_asked:
    bar = loop.progress(
      range(start + 1, total + 1), total, 'ppo', settings.log, initial=start
    )
    for step in bar:
      clock = time.perf_counter()
      profiler.before(step)
      meter.add(*work(settings, algorithm))
      batch, items = questions.batch(step)
      rollout = sample(networks, state.trainable['policy'], batch, state.at_step(0))
      scores = evaluate(networks, state.trainable, frozen, rollout)
      gold, length_weight = questions.gold(items, rollout.tokens)
      estimates, row = estimate(rollout, scores, gold, length_weight)
      adapter = int(rollout.adapter)
      if history.get('adapter', adapter) != adapter:
        raise RuntimeError(
          f'iteration {step}: the sampler used adapter {adapter:08x}, the last update '
          f'wrote {history["adapter"]:08x}'
        )
      gap = float(row['sampler/logprob_gap'])
      if gap > ppo.logprob_gap:
        raise SamplerError(
          f'iteration {step}: sampler and trainer differ by {gap:.4f} nats a token, '
          f'config.ppo.logprob_gap allows {ppo.logprob_gap}'
        )
      state, losses = update(
        state, networks, rollout, scores, estimates, rate(state.step)
      )
      history['adapter'] = int(losses.pop('adapter'))
      profiler.after(step, losses)
      questions.dump(space.folder / SAMPLES, step, items, rollout, scores)
      row = metrics.write(
        step,
        {
          **row,
          **losses,
          'learning_rate': rate(step - 1),
          'sampler/adapter': adapter,
          'compilations': compilations.count,
          'seconds': (seconds := time.perf_counter() - clock),
          **meter.rates(seconds),
        },
      )
      bar.set_postfix_str(
        f'reward {row["objective/reward"]:.2f} kl {row["objective/kl"]:.2f}'
      )
      if step == total or step % ppo.eval_every == 0:
        follow(step)
      stopping = hosts.anybody(stop_asked())
      if step % settings.checkpoint.every == 0 or step == total or stopping:
        checkpointer.save(state, history)
      if stopping and step < total:
        checkpointer.wait()
        raise loop.Interrupted(f'ppo: saved at iteration {step} of {total}')
  profiler.close()
  checkpointer.wait()
  checkpointer.close()
  metrics.close()
  rewards = history['held_out/reward']
  return state, {
    'reward_before': rewards['0'],
    'reward_after': rewards[str(total)],
    'history': {k: v for k, v in history.items() if k != 'adapter'},
    'adapter': f'{history["adapter"]:08x}',
  }


def work(settings: PpoRun, algorithm: Algorithm) -> tuple[float, float, float]:
  """Positions of an iteration, operations it needs, and those of recomputation."""
  ppo, visual = settings.ppo, settings.data.frames + settings.model.vision.patches
  actor, critic = algorithm.actor, algorithm.critic
  small, large = (actor.cfg.llama, actor.lora), (critic.cfg.llama, critic.lora)
  answer, prompt = ppo.response_tokens, ppo.query_tokens + visual - 1
  length = prompt + answer
  seen = (
    flops.forward(*small, prompt, 1)
    + flops.decode(*small, prompt, answer)
    + 2 * flops.forward(*small, length, answer)
    + flops.forward(*large, length)
    + flops.forward(*large, length + len(algorithm.suffix))
  )
  learnt = [
    flops.training(*small, length, answer),  # type: ignore[arg-type]
    flops.training(*large, length),  # type: ignore[arg-type]
  ]
  needed = seen + ppo.epochs * sum(n for n, _ in learnt)
  again = ppo.epochs * sum(a for _, a in learnt)
  rows = ppo.rollout_batch
  return rows * length, rows * needed, rows * again


def check_gate(settings: PpoRun, space: Workspace) -> None:
  """Refuses to start on a judge or a reward model that is not good enough."""
  gate: Gate = settings.gate
  judged = space.artefact('label', settings.label, settings.critic_size)
  ranked = space.artefact('reward', settings.reward, settings.critic_size)
  label, reward = (artefacts.read_summary(at) or {} for at in (judged, ranked))
  measured = (
    (
      'judge_agreement',
      judged,
      label.get('agreement_kept', label.get('agreement')),
      "the judge's labels agree with the truth on",
    ),
    (
      'order_agreement',
      judged,
      label.get('order_agreement'),
      'the judge agrees with itself, answers swapped, on',
    ),
    (
      'reward_accuracy',
      ranked,
      reward.get('accuracy'),
      'the reward model ranks held-out pairs right on',
    ),
  )
  for name, folder, value, words in measured:
    least = getattr(gate, name)
    if gate.override or not least:
      continue
    asks = f'config.gate.{name} asks for {least:.1%}'
    if not isinstance(value, (int, float)):
      said = f'{asks}, which is not measured: {folder / "summary.json"} has none'
      if name == 'reward_accuracy':
        raise artefacts.ArtefactError(
          f'{said}; PPO might learn noise. Make the reward model with '
          'configs/reward.py, or --config.gate.override=True'
        )
      report.say(f'  {said}')
    elif not value >= least:  # NaN is not
      raise artefacts.ArtefactError(
        f'{words} {value:.1%}, {asks}; PPO would '
        'learn noise. Improve it, or --config.gate.override=True'
      )


def stop_ids(tokenizer, texts: tuple[str, ...]) -> tuple[int, ...]:
  """The last piece of each text: ' ?' as a word of its own, '?' glued to another."""
  return tuple(
    tokenizer.pieces(text.strip() if text.startswith(' ') else f'a{text}')[-1]
    for text in texts
  )


def check_scoring(reward: artefacts.Artefact, scoring: RewardPrompt) -> None:
  """Refuses to score answers with another turn than the reward model learnt."""
  scored_with = dataclasses.asdict(scoring)
  if reward.info['scoring'] != scored_with:
    raise artefacts.ArtefactError(
      f'config.scoring: the reward model was trained with {reward.info["scoring"]}, '
      f'this run would score with {scored_with}'
    )


def origins(settings: PpoRun, space: Workspace) -> dict[str, str]:
  """Where both bases were, for the artefact."""
  actor = settings.base, space.artefact('sft', settings.sft)
  critic = actor
  if not settings.one_base:
    sft = space.artefact('sft', settings.critic_sft, settings.critic_size)
    critic = settings.critic_base, sft
  return bases.origin(*actor) | bases.origin(*critic, prefix='critic_')


def _tuned_bases(settings: PpoRun, space: Workspace):
  actor = bases.tuned(
    bases.load(settings.base, settings.model),
    space.artefact('sft', settings.sft),
    settings.model,
  )
  if settings.one_base:
    return actor, actor
  critic = bases.tuned(
    bases.load(settings.critic_base, settings.critic),
    space.artefact('sft', settings.critic_sft, settings.critic_size),
    settings.critic,
  )
  return actor, critic


def _networks(settings, space, actor_base, critic_base) -> Bases:
  """Both bases on the device; one copy where they are the same weights, held alike."""
  put = lambda base, cfg, held: bases.on_device(
    {'llama': base.params['llama']}, cfg, space.mesh, held=held
  )
  actor = put(actor_base, settings.model, settings.quant)
  shared = critic_base.fingerprint == actor_base.fingerprint
  if shared and settings.critic_quant == settings.quant:
    return Bases(actor=actor, critic=actor)
  return Bases(
    actor=actor, critic=put(critic_base, settings.critic, settings.critic_quant)
  )


class _Questions:
  """The prompts of a run: which are trained on, which held out, and their features."""

  def __init__(self, settings: PpoRun, space, actor, critic, actor_base, critic_base):
    self.settings, self.space = settings, space
    self.tokenizer = actor_base.tokenizer
    self.fingerprint = f'{actor_base.fingerprint}+{critic_base.fingerprint}'
    self.actor = space.seen(actor, actor_base)
    sees = lambda cfg: (cfg.vision, cfg.projector)
    shared = critic_base.fingerprint == actor_base.fingerprint and sees(
      settings.critic
    ) == sees(settings.model)
    self.critic = (
      self.actor if shared else space.seen(critic, critic_base, settings.critic_quant)
    )
    items = [
      item
      for item in sources.read(space.data, 'rl', space.skipped)
      if item.video is not None
    ]
    bar = lambda items, total: loop.progress(
      items, total, 'ppo: see', settings.log, 'video'
    )
    for seen in {id(s): s for s in (self.actor, self.critic)}.values():
      bad = seen.encode([item.video for item in items], 'tokens', bar)
      items = sources.drop_unreadable(items, bad, space.skipped)
    encoded = {
      id(item): sources.encode_question(self.tokenizer, item) for item in items
    }
    longest = settings.ppo.query_tokens
    fitting = [item for item in items if len(encoded[id(item)]) <= longest]
    self.too_long = len(items) - len(fitting)
    self.ids = {id(item): encoded[id(item)] for item in fitting}  # keys may repeat
    held = lambda item: examples.is_held_out(item.video, space.data.holdout)
    self.train = [item for item in fitting if not held(item)]
    self.eval = [item for item in fitting if held(item)][: settings.ppo.eval_prompts]
    self.truth = Truth.load(
      sources.locate(dataclasses.replace(space.data, train=''), 'truth')
    )
    sources.check_joined(items, self.truth)
    need = settings.ppo.rollout_batch
    if len(self.train) < need or not self.eval:
      raise examples.DataError(
        f'{sources.locate(space.data, "rl")}: {len(self.train)} prompts to train on '
        f'(config.ppo.rollout_batch is {need}) and {len(self.eval)} held out'
      )

  def batch(self, step: int):
    """The prompts of one iteration (from 1), a pure function of the step."""
    size = self.settings.ppo.rollout_batch
    in_pass = len(self.train) // size
    epoch, index = divmod(step - 1, in_pass)
    order = np.random.default_rng([self.settings.seed, 3, epoch]).permutation(
      len(self.train)
    )
    picked = order[index * size : (index + 1) * size]
    items = [self.train[i] for i in picked]
    return self._put(items, picked), items

  def held_out(self):
    """Batches of held-out prompts, filled up with the first of them."""
    size = self.settings.ppo.rollout_batch
    for first in range(0, len(self.eval), size):
      items = self.eval[first : first + size]
      filled = items + [items[0]] * (size - len(items))
      yield self._put(filled, np.arange(len(filled))), items

  def _put(self, items, numbers) -> Prompts:
    """On the devices; each host reads the rows that its own hold."""
    mine = sharding.rows_of_this_host(len(items), self.space.mesh)
    items, numbers = items[mine], numbers[mine]
    ids = [self.ids[id(item)] for item in items]
    arrays = sources.collate_prompts(ids, self.settings.ppo.query_tokens)
    read = lambda seen: np.stack([seen.read('tokens', item.video) for item in items])
    dtype = self.actor.model.cfg.dtype
    actor = sharding.put_batch(read(self.actor).astype(dtype), self.space.mesh)
    critic = (
      actor
      if self.critic is self.actor
      else sharding.put_batch(read(self.critic).astype(dtype), self.space.mesh)
    )
    return Prompts(
      **sharding.put_batch(
        {**arrays, 'number': np.asarray(numbers, np.int32)}, self.space.mesh
      ),
      actor=actor,
      critic=critic,
    )

  def gold(self, items, tokens):
    """Agreement with gold answers and weight of the length bonus, `float32[B]` each."""
    agreed, weight = np.zeros(len(items), np.float32), np.ones(len(items), np.float32)
    if self.settings.ppo.answer_types == 'data':
      answers = sharding.to_host(tokens)
      for i, (item, row) in enumerate(zip(items, answers, strict=True)):
        kind, weight[i] = golds.of_record(item.record, item.where)
        agreed[i] = golds.agreement(kind, self.tokenizer.decode(row))
    mine = sharding.rows_of_this_host(len(items), self.space.mesh)
    put = lambda x: sharding.put_batch(x[mine], self.space.mesh)
    return put(agreed), put(weight)

  def quality(self, items, tokens) -> list[float]:
    """True quality of answers, where the data come with a truth."""
    if self.truth is None:
      return []
    return [
      self.truth.score(item.key, self.tokenizer.decode(row)).quality
      for item, row in zip(items, tokens, strict=False)
      if item.key in self.truth
    ]

  def dump(self, path: pathlib.Path, step: int, items, rollout, scores) -> None:
    """A few answers of every iteration, to read."""
    tokens, reward = sharding.to_host((rollout.tokens, scores.reward))
    if not hosts.is_first():
      return
    count = min(8, len(items))
    items, tokens, reward = items[:count], tokens[:count], reward[:count]
    with path.open('a', encoding='utf-8') as file:
      for item, row, score in zip(items, tokens, reward, strict=False):
        line = {
          'iteration': step,
          'id': item.key,
          'question': item.question,
          'answer': self.tokenizer.decode(row),
          'reward': float(score),
        }
        file.write(json.dumps(line) + '\n')
