"""Runs the iterations of PPO: rollout, score, estimate, update, evaluate."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import compilation, sharding
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.rl import (
  flops,
  kl_control,
  media,
  phase_arguments,
  selection,
  start,
)
from vlm_rlaif_jax.rl.algorithm import SAMPLING, Algorithm, programs
from vlm_rlaif_jax.rl.held_out_judge import AnswerJudge
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.rl.selection import REWARD, Selection
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.sections import LogConfig
from vlm_rlaif_jax.train import loop, optim
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.metrics import rewind
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.sinks import Media
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Bases, Frozen, Prompts, Rollout

SAMPLES = 'samples.jsonl'  # below the folder of the stage: responses to read
HELD_OUT_SEED = 7  # every evaluation samples with the same key
EVENTS = ('stopped', 'over_optimized')  # iterations, where one happened
SCORES = {'last': '', 'judge': 'held_out/judge', 'truth': 'held_out/true_quality'}

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
    phases: of `rl.algorithm.programs`.
    rate: schedule of the learning rate.
    folder: of the stage; JSON lines with a few responses of each iteration go there.
    judge: scores held-out responses; None: they are not judged.

  Attributes:
    history: held-out metrics so far, the checksum of the newest adapter, the weight of
      the KL penalty, and `best` or `stopped` once there is one; saved with every
      checkpoint.
    kl: weighs the KL penalty, and ends a run that goes too far.
    selection: keeps the weights that the run leaves.
  """

  def __init__(
    self,
    config: PpoConfig,
    bases: Bases,
    frozen: Frozen,
    phases: dict[str, sharding.Program],
    dataset: PromptDataset,
    rate: Callable[[Any], jax.Array],
    folder: pathlib.Path,
    judge: AnswerJudge | None = None,
  ):
    self.config, self.bases, self.frozen, self.phases = config, bases, frozen, phases
    self.dataset, self.rate, self.judge = dataset, rate, judge
    self.samples = folder / SAMPLES
    self.history: dict[str, Any] = {}
    self.responses: list[media.Response] = []  # of the last evaluation
    self.response_length = float(config.response_tokens)  # mean of the last rollout
    self.kl = kl_control.KlControl(config, self.history)
    self.selection = Selection(folder, SCORES[config.select], self.history)

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
      self.bases, state.trainable['policy'], prompts, state.at_step(SAMPLING)
    )

    # Score
    scores = self.phases['score'](self.bases, state.trainable, self.frozen, rollout)
    if self.config.reward == 'judge':
      rewards = self._judge_rewards(items, rollout)
      scores = dataclasses.replace(scores, reward=self.dataset.put_rows(rewards))

    # Rewards, advantages, returns
    correctness, length_weight = self.dataset.correctness(items, rollout.tokens)
    coefficient = self.kl.coefficient
    estimates, metrics = self.phases['estimate'](
      rollout,
      scores,
      correctness,
      length_weight,
      self.dataset.put_everywhere(np.float32(coefficient)),
    )
    adapter = int(rollout.adapter)
    _check_adapter(number, adapter, self.history.get('adapter', adapter))
    _check_gap(number, float(metrics['sampler/logprob_gap']), self.config.logprob_gap)

    # Distance from the reference: the weight of its penalty, the end of the run
    self.kl.follow(number, float(metrics['objective/kl']))

    # Update
    state, losses = self.phases['update'](
      state, self.bases, rollout, scores, estimates, rate
    )
    self.history['adapter'] = int(losses.pop('adapter'))
    self.response_length = float(metrics['objective/tokens'])

    # Metrics, and a few responses to read
    self.dataset.write_samples(self.samples, number, items, rollout, scores)
    metrics = {
      **metrics,
      **losses,
      'learning_rate': rate,
      'kl_coef': coefficient,
      'sampler/adapter': adapter,
    }
    aliases = {k: metrics[ours] for k, ours in ALIASES.items()}
    return state, {**metrics, **aliases}

  def compile_ahead(self, state: TrainState, finished: int, log: LogConfig) -> None:
    """Compiles all phases of the next iteration and of the evaluation, if any is due.

    Args:
      finished: iterations so far.
    """
    for prompts, _ in self.batches(finished, finished + 1):
      arguments = phase_arguments.arguments(
        self.phases,
        self.bases,
        self.frozen,
        state,
        prompts,
        self.config.response_tokens,
        state.at_step(SAMPLING),
        self.dataset.put_everywhere(np.float32(0)),
      )
      if not self.dataset.eval or self.config.reward == 'judge':
        del arguments['reward']
      jobs = [(self.phases[name], args) for name, args in arguments.items()]
      compilation.ahead(jobs, loop.bar('ppo: compile', log, 'phase'))

  def _judge_rewards(self, items: list[Example], rollout: Rollout) -> np.ndarray:
    """Returns the judge's rewards of responses, `float32[items]`, on the host."""
    assert self.judge is not None
    return self.judge.rewards(items, self.dataset.answers(items, rollout))

  def has_ended(self) -> bool:
    """Returns whether an iteration went too far from the reference, the last one."""
    return self.kl.has_ended

  def batches(self, first: int, total: int) -> Iterator[Any]:
    """Yields the prompts of the iterations after `first`, until the run is to end."""
    for number in range(first + 1, total + 1):
      if self.has_ended():
        return
      yield self.dataset.batch(number)

  def evaluate_held_out(self, state: TrainState) -> dict[str, float]:
    """Returns the means over held-out prompts, sampled with the same key always."""
    rewards, quality, judged = [], [], []
    self.responses = []
    key = self.dataset.put_everywhere(jax.random.key(HELD_OUT_SEED))
    for prompts, items in self.dataset.held_out():
      rollout = self.phases['rollout'](
        self.bases, state.trainable['policy'], prompts, key
      )
      tokens = sharding.to_host(rollout.tokens)
      if self.config.reward == 'judge':
        values = self._judge_rewards(items, rollout)
      else:
        scores = self.phases['reward'](self.bases, self.frozen, prompts, rollout.tokens)
        values = sharding.to_host(scores)[: len(items)]
      rewards += list(values)
      self.responses += zip(items, tokens, map(float, values), strict=False)
      quality += self.dataset.quality(items, tokens)
      if self.config.select == 'judge':
        assert self.judge is not None
        judged += self.judge.scores(items, self.dataset.answers(items, rollout))
    row = {REWARD: float(np.mean(rewards))}
    if quality:
      row[SCORES['truth']] = float(np.mean(quality))
    if judged:
      row[SCORES['judge']] = float(np.mean(judged))
    for name, value in row.items():
      self.history.setdefault(name, {})[str(int(state.step))] = value
    self.selection.offer(state, row)
    self.selection.check_optimization()
    return row

  def media(self) -> Media:
    """Returns what is displayed of the responses of the last evaluation."""
    tokenizer, data = self.dataset.tokenizer, self.dataset.run.data
    return media.of_responses(self.responses, tokenizer.decode, data)

  def summary(self, last: int) -> dict[str, Any]:
    """Returns what the summary of the stage has of all iterations.

    Args:
      last: number of the iteration after which the run ended.
    """
    rewards = self.history.get(REWARD, {})
    names = [name for name in (REWARD, *SCORES.values()) if name in self.history]
    events = {k: self.history[k] for k in EVENTS if k in self.history}
    final = self.history['best']['iteration'] if self.selection.score else last
    return {
      'iterations': last,
      'final_iteration': final,
      'held_out': len(self.dataset.eval),
      'reward_before': rewards.get('0'),
      'reward_after': rewards.get(str(final)),
      'history': {name: self.history[name] for name in names},
      'kl_coef': self.kl.coefficient,
      **events,
      'adapter': f'{self.history["adapter"]:08x}',
    }


def train_loop(
  settings: PpoRun,
  run: RunContext,
  learner: Algorithm,
  bases: Bases,
  frozen: Frozen,
  state: TrainState,
  dataset: PromptDataset,
  total: int,
  inputs: dict[str, Any],
  judge: AnswerJudge | None = None,
) -> tuple[dict, dict]:
  """Runs all iterations, resumed from the last checkpoint.

  Args:
    inputs: fingerprints of the artifacts that PPO starts from, by name.
    judge: of held-out responses, for `ppo.select='judge'`.

  Returns:
    the weights that the run leaves (`selection.parts_of`), and for the summary what
    `Iterations.summary` has.
  """
  selection.check(settings.ppo.select, dataset)
  phases = programs(learner, run.mesh, bases, frozen, state)
  rate = optim.learning_rate(settings.optim, total)
  optim.report_warmup(settings.optim, total, 'iteration')
  iterations = Iterations(
    settings.ppo, bases, frozen, phases, dataset, rate, run.folder, judge
  )
  loras = learner.actor.lora, learner.critic.lora
  suffix = dataset.suffix_tokens or len(learner.suffix)
  identity = start.identity_of(settings, dataset, total, learner.devices, inputs)
  checkpointer = Checkpointer(run.folder, settings.checkpoint, identity)

  def prepare(state: TrainState, finished: int) -> None:
    iterations.kl.resume()
    iterations.selection.resume()
    rewind(iterations.samples, finished, 'iteration')
    if finished < total:
      iterations.compile_ahead(state, finished, settings.log)

  state = loop.fit(
    iterations.run,
    state,
    lambda first: iterations.batches(first, total),
    total,
    title='ppo',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=iterations.evaluate_held_out if dataset.eval else None,
    evaluate_every=settings.ppo.eval_every,
    evaluate_first=True,
    media=iterations.media,
    profiler=Profiler(settings.profile, run.folder, phases.values()),
    work=lambda batch: flops.step_flops(
      settings, *loras, suffix, iterations.response_length
    ),
    prepare=prepare,
    extra=iterations.history,
    has_ended=iterations.has_ended,
    saved=iterations.selection.saved,
    row_every=1,
    unit='iteration',
    status=_status,
  )
  checkpointer.close()
  last = int(state.step)
  # A run of an earlier version saved its early end before this evaluation.
  if dataset.eval and str(last) not in iterations.history[REWARD]:
    iterations.evaluate_held_out(state)
  return iterations.selection.parts(state), iterations.summary(last)


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
