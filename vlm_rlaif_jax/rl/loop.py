"""Runs the iterations of PPO: rollout, score, estimate, update, evaluate."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.rl import flops
from vlm_rlaif_jax.rl.ppo import PpoLearner, programs
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.train import journal, loop, optim
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.metrics import rewind
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Bases, Frozen, Prompts

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


class Iterations:
  """An iteration as a step of `train.loop.fit`, and the evaluation between them.

  Args:
    bases, frozen: on the devices.
    phases: of `rl.ppo.programs`.
    rate: schedule of the learning rate.
    samples: file of JSON lines to which a few responses of an iteration are added.

  Attributes:
    history: held-out metrics so far and the checksum of the newest adapter; saved with
      every checkpoint.
  """

  def __init__(
    self,
    config: PpoConfig,
    bases: Bases,
    frozen: Frozen,
    phases: dict[str, sharding.Program],
    dataset: PromptDataset,
    rate: Callable[[Any], jax.Array],
    samples: pathlib.Path,
  ):
    self.config, self.bases, self.frozen, self.phases = config, bases, frozen, phases
    self.dataset, self.rate, self.samples = dataset, rate, samples
    self.history: dict[str, Any] = {}

  def run(
    self, state: TrainState, batch: tuple[Prompts, list[Example]]
  ) -> tuple[TrainState, dict]:
    """Returns the state after one iteration, and its metrics.

    Raises:
      SamplerError: sampler and trainer do not agree on log-probabilities.
    """
    prompts, items = batch
    number = int(state.step) + 1
    rate = self.rate(state.step)

    # Rollout
    rollout = self.phases['rollout'](
      self.bases, state.trainable['policy'], prompts, state.at_step(0)
    )

    # Score
    scores = self.phases['score'](self.bases, state.trainable, self.frozen, rollout)

    # Rewards, advantages, returns
    correctness, length_weight = self.dataset.correctness(items, rollout.tokens)
    estimates, metrics = self.phases['estimate'](
      rollout, scores, correctness, length_weight
    )
    adapter = int(rollout.adapter)
    _check_adapter(number, adapter, self.history.get('adapter', adapter))
    _check_gap(number, float(metrics['sampler/logprob_gap']), self.config.logprob_gap)

    # Update
    state, losses = self.phases['update'](
      state, self.bases, rollout, scores, estimates, rate
    )
    self.history['adapter'] = int(losses.pop('adapter'))

    # Metrics, and a few responses to read
    self.dataset.write_samples(self.samples, number, items, rollout, scores)
    metrics = {
      **metrics,
      **losses,
      'learning_rate': rate,
      'sampler/adapter': adapter,
    }
    return state, {**metrics, **{name: metrics[ours] for name, ours in ALIASES.items()}}

  def evaluate_held_out(self, state: TrainState) -> dict[str, float]:
    """Returns the mean reward on held-out prompts, sampled with the same key always."""
    rewards, quality = [], []
    key = jax.random.key(HELD_OUT_SEED)
    for prompts, items in self.dataset.held_out():
      rollout = self.phases['rollout'](
        self.bases, state.trainable['policy'], prompts, key
      )
      scores = self.phases['reward'](self.bases, self.frozen, prompts, rollout.tokens)
      rewards += list(sharding.to_host(scores)[: len(items)])
      quality += self.dataset.quality(items, sharding.to_host(rollout.tokens))
    row = {'held_out/reward': float(np.mean(rewards))}
    if quality:
      row['held_out/true_quality'] = float(np.mean(quality))
    for name, value in row.items():
      self.history.setdefault(name, {})[str(int(state.step))] = value
    return row

  def summary(self, total: int) -> dict[str, Any]:
    """Returns what the summary of the stage has of all iterations."""
    rewards = self.history.get('held_out/reward', {})
    return {
      'held_out': len(self.dataset.eval),
      'reward_before': rewards.get('0'),
      'reward_after': rewards.get(str(total)),
      'history': {k: v for k, v in self.history.items() if k != 'adapter'},
      'adapter': f'{self.history["adapter"]:08x}',
    }


def train_loop(
  settings: PpoRun,
  run: RunContext,
  learner: PpoLearner,
  bases: Bases,
  frozen: Frozen,
  state: TrainState,
  dataset: PromptDataset,
  total: int,
  inputs: dict[str, Any],
) -> tuple[TrainState, dict]:
  """Runs all iterations, resumed from the last checkpoint.

  Args:
    inputs: fingerprints of the artifacts that PPO starts from, by name.

  Returns:
    the final state, and for the summary: the held-out reward before and after, its
    history, and the checksum of the policy's adapter.
  """
  phases = programs(learner, run.mesh, bases, frozen, state)
  rate = optim.learning_rate(settings.optim, total)
  samples = run.folder / SAMPLES
  iterations = Iterations(settings.ppo, bases, frozen, phases, dataset, rate, samples)
  work = flops.step_flops(
    settings, learner.actor.lora, learner.critic.lora, len(learner.suffix)
  )
  checkpointer = Checkpointer(
    run.folder,
    settings.checkpoint,
    journal.identity(settings, dataset.fingerprint, total_steps=total, **inputs),
  )
  state = loop.fit(
    iterations.run,
    state,
    lambda first: (dataset.batch(number) for number in range(first + 1, total + 1)),
    total,
    title='ppo',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=iterations.evaluate_held_out if dataset.eval else None,
    evaluate_every=settings.ppo.eval_every,
    evaluate_first=True,
    profiler=Profiler(settings.profile, run.folder, phases.values()),
    work=lambda batch: work,
    prepare=lambda state, finished: rewind(samples, finished, 'iteration'),
    extra=iterations.history,
    row_every=1,
    unit='iteration',
    status=_status,
  )
  checkpointer.close()
  return state, iterations.summary(total)


def _status(row: dict[str, float]) -> str:
  """Returns what the bar shows."""
  return f'reward {row["objective/reward"]:.2f} kl {row["objective/kl"]:.2f}'


def _check_adapter(number: int, adapter: int, newest: int) -> None:
  """Raises RuntimeError if the sampler used another adapter than the last update's."""
  if adapter != newest:
    raise RuntimeError(
      f'iteration {number}: the sampler used adapter {adapter:08x}, the last update '
      f'wrote {newest:08x}'
    )


def _check_gap(number: int, gap: float, limit: float) -> None:
  """Raises SamplerError if the gap is over its limit."""
  if not gap <= limit:  # NaN is not
    raise SamplerError(
      f'iteration {number}: sampler and trainer differ by {gap:.4f} nats a token, '
      f'config.ppo.logprob_gap allows {limit}'
    )
