"""The loop of reinforcement learning."""

import time

import jax
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.rl.ppo import PpoLearner, programs
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import journal, loop, optim
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.metrics import Compilations, Metrics, rewind
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler

SAMPLES = 'samples.jsonl'  # below the folder of the stage: answers to read


class SamplerError(UserError):
  """Sampler and trainer differ by more than `ppo.logprob_gap`."""


def train_loop(settings, space, algorithm, networks, frozen, state, questions, total):
  """The loop: sample, evaluate, estimate, update; follow the held-out reward."""
  ppo = settings.ppo
  checkpointer = Checkpointer(
    space.folder,
    settings.checkpoint,
    journal.identity(settings, questions.fingerprint, total_steps=total),
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
      meter.add(*step_flops(settings, algorithm))
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
      stopping = hosts.any_host(stop_asked())
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


def step_flops(settings: PpoRun, algorithm: PpoLearner) -> tuple[float, float, float]:
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
  learned = [
    flops.training(*small, length, answer),  # type: ignore[arg-type]
    flops.training(*large, length),  # type: ignore[arg-type]
  ]
  needed = seen + ppo.epochs * sum(n for n, _ in learned)
  again = ppo.epochs * sum(a for _, a in learned)
  rows = ppo.rollout_batch
  return rows * length, rows * needed, rows * again
