"""The loop of reinforcement learning: rollout, score, estimate, update, follow."""

from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.rl import flops
from vlm_rlaif_jax.rl.ppo import PpoLearner, programs
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import journal, loop, optim
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.metrics import rewind
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Bases, Frozen, Rollout

SAMPLES = 'samples.jsonl'  # below the folder of the stage: responses to read
HELD_OUT_SEED = 7  # every evaluation samples with the same key

# Names that readers of TRL and cleanrl look for -> ours.
ALIASES = {
  'reward': 'objective/reward',
  'kl': 'objective/kl',
  'entropy': 'objective/entropy',
  'response_length': 'objective/tokens',
  'clip_fraction': 'policy/clip_share',
  'lr': 'learning_rate',
}


class SamplerError(UserError):
  """Sampler and trainer differ by more than `ppo.logprob_gap`."""


def train_loop(
  settings: PpoRun,
  run: RunContext,
  learner: PpoLearner,
  bases: Bases,
  frozen: Frozen,
  state: TrainState,
  dataset: PromptDataset,
  total: int,
) -> tuple[TrainState, dict]:
  """Runs all iterations, resumed from the last checkpoint.

  Returns:
    the final state, and for the summary: the held-out reward before and after, its
    history, and the checksum of the policy's adapter.

  Raises:
    SamplerError: sampler and trainer do not agree on log-probabilities.
  """
  config = settings.ppo
  phases = programs(learner, run.mesh, bases, frozen, state)
  rate = optim.learning_rate(settings.optim, total)
  work = flops.step_flops(
    settings, learner.actor.lora, learner.critic.lora, len(learner.suffix)
  )
  history: dict[str, Any] = {}  # saved with every checkpoint

  def iterate(state: TrainState, batch: tuple) -> tuple[TrainState, dict]:
    prompts, items = batch
    step = int(state.step) + 1

    # Rollout
    adapter = state.trainable['policy']
    rollout = phases['rollout'](bases, adapter, prompts, state.at_step(0))
    _check_adapter(step, rollout, history)

    # Score
    scores = phases['score'](bases, state.trainable, frozen, rollout)

    # Advantages
    correctness, length_weight = dataset.correctness(items, rollout.tokens)
    estimates, metrics = phases['estimate'](rollout, scores, correctness, length_weight)
    _check_gap(step, float(metrics['sampler/logprob_gap']), config.logprob_gap)

    # Update
    sampled_with = int(rollout.adapter)
    state, losses = phases['update'](
      state, bases, rollout, scores, estimates, rate(state.step)
    )
    history['adapter'] = int(losses.pop('adapter'))
    dataset.write_samples(run.folder / SAMPLES, step, items, rollout, scores)
    metrics = {
      **metrics,
      **losses,
      'learning_rate': rate(step - 1),
      'sampler/adapter': sampled_with,
    }
    return state, {**metrics, **{name: metrics[ours] for name, ours in ALIASES.items()}}

  def evaluate_held_out(state: TrainState) -> dict[str, float]:
    """Returns the mean reward on held-out prompts; the samples' key is always one."""
    rewards, quality = [], []
    key = jax.random.key(HELD_OUT_SEED)
    for prompts, items in dataset.held_out():
      rollout = phases['rollout'](bases, state.trainable['policy'], prompts, key)
      scores = phases['reward'](bases, frozen, prompts, rollout.tokens)
      rewards += list(sharding.to_host(scores)[: len(items)])
      quality += dataset.quality(items, sharding.to_host(rollout.tokens))
    row = {'held_out/reward': float(np.mean(rewards))}
    if quality:
      row['held_out/true_quality'] = float(np.mean(quality))
    for name, value in row.items():
      history.setdefault(name, {})[str(int(state.step))] = value
    return row

  checkpointer = Checkpointer(
    run.folder,
    settings.checkpoint,
    journal.identity(settings, dataset.fingerprint, total_steps=total),
  )
  state = loop.fit(
    iterate,
    state,
    lambda first: (dataset.batch(step) for step in range(first + 1, total + 1)),
    total,
    title='ppo',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=evaluate_held_out,
    evaluate_every=config.eval_every,
    evaluate_first=True,
    profiler=Profiler(settings.profile, run.folder, phases.values()),
    work=lambda batch: work,
    prepare=lambda state, done: rewind(run.folder / SAMPLES, done, 'iteration'),
    extra=history,
    row_every=1,
    unit='iteration',
    status=_status,
  )
  checkpointer.close()
  rewards = history['held_out/reward']
  return state, {
    'reward_before': rewards['0'],
    'reward_after': rewards[str(total)],
    'history': {name: rows for name, rows in history.items() if name != 'adapter'},
    'adapter': f'{history["adapter"]:08x}',
  }


def _status(row: dict[str, float]) -> str:
  """Returns what the bar shows."""
  return f'reward {row["objective/reward"]:.2f} kl {row["objective/kl"]:.2f}'


def _check_adapter(step: int, rollout: Rollout, history: dict) -> None:
  """Raises RuntimeError if the sampler used another adapter than the last update's."""
  adapter = int(rollout.adapter)
  if history.get('adapter', adapter) != adapter:
    raise RuntimeError(
      f'iteration {step}: the sampler used adapter {adapter:08x}, the last update '
      f'wrote {history["adapter"]:08x}'
    )


def _check_gap(step: int, gap: float, limit: float) -> None:
  """Raises SamplerError if the gap is over its limit."""
  if gap > limit:  # NaN is refused as a metric, by its name
    raise SamplerError(
      f'iteration {step}: sampler and trainer differ by {gap:.4f} nats a token, '
      f'config.ppo.logprob_gap allows {limit}'
    )
