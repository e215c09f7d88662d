"""A PPO learner on the test network, and rollouts and scores by it."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp

from configs.ppo import PRESETS
from tests.tiny import CFG, LORA, random_adapter
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import ppo
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Rollout, Scores

ROWS, T, R, N = 8, 7, 6, 5
SMALL = {
  'rollout_batch': ROWS, 'step_batch': 4, 'micro_batch': 2, 'epochs': 2,
  'query_tokens': T, 'response_tokens': R, 'logit_chunk': 0, 'logprob_gap': 1e-3,
}  # fmt: skip


@functools.cache
def optimizer():
  """Returns one for all learners: those with equal settings are equal."""
  return optim.make_optimizer(OptimConfig(clip_norm=1.0))


def compiled(name):
  """Returns a method of learners, compiled once for those that are equal, as in a run.

  Without a program around it, each of its operations would be compiled by itself.
  """
  return jax.jit(
    lambda learner, *args, **options: getattr(learner, name)(*args, **options),
    static_argnums=0,
  )


sample, score, update = map(compiled, ('sample', 'score', 'update'))
rewards, logprobs, gradient = map(compiled, ('rewards', 'logprobs', 'gradient'))
losses = compiled('losses')


def algorithm(preset='masked', **changes):
  config = PpoConfig(**{**SMALL, **PRESETS[preset], **changes})
  return ppo.PpoLearner(
    actor=Vlm(CFG, LORA),
    critic=Vlm(CFG, LORA),
    config=config,
    optimizer=optimizer(),
    eos=2,
    stops=(7, 8) if config.stop_at != 'eos' else (),
    suffix=(11, 12),
    devices=1,
  )


def state(algo, value_head='zero'):
  trainable = {
    'policy': random_adapter(1),
    'value': random_adapter(2),
    'head': heads.init_head(jax.random.key(4), CFG.llama.width, value_head),
  }
  if not algo.has_value:
    trainable = {'policy': trainable['policy']}
  return TrainState(
    step=jnp.int32(0),
    trainable=trainable,
    opt_state=optim.init_optimizer(algo.optimizer, trainable),
    key=jax.random.key(0),
  )


def rolled(algo, networks, frozen, prompts):
  current = state(algo)
  rollout = sample(
    algo, networks, current.trainable['policy'], prompts, jax.random.key(1)
  )
  scores = score(algo, networks, current.trainable, frozen, rollout)
  return current, rollout, scores


def scores_like(mask, **values):
  zeros = jnp.zeros(mask.shape)
  return Scores(
    **{
      'logprobs': zeros,
      'reference': zeros,
      'values': zeros,
      'entropy': zeros,
      'reward': jnp.zeros(len(mask)),
      **values,
    }
  )


def rollout_of(prompts, tokens, mask, has_eos=True):
  """Returns a rollout of these responses, which nobody sampled."""
  return Rollout(
    prompts=prompts,
    tokens=jnp.where(mask, jnp.asarray(tokens, jnp.int32), PAD),
    mask=mask,
    sampler_logprobs=jnp.zeros(mask.shape),
    has_eos=jnp.broadcast_to(jnp.asarray(has_eos), len(mask)),
    adapter=jnp.uint32(0),
  )


def up_to(lengths):
  """Returns the mask of responses of these lengths, `bool[B, R]`."""
  return jnp.arange(R)[None] < jnp.asarray(lengths)[:, None]


def run_of(settings: PpoRun, workdir: pathlib.Path) -> types.SimpleNamespace:
  """Returns what knows where artifacts are, and nothing else of a run."""
  run = types.SimpleNamespace(root=workdir / settings.size, settings=settings)
  run.artifact = functools.partial(RunContext.artifact, run)
  return run
