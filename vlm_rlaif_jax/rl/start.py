"""What PPO starts from: two tuned bases, four adapters, and the state of training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.rl import algorithms
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import journal, shardings
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState, copy
from vlm_rlaif_jax.types import Bases, Frozen
from vlm_rlaif_jax.weights import adapters, bases, placement
from vlm_rlaif_jax.weights.artifacts import Artifact, ArtifactError


def tuned_bases(settings: PpoRun, run: RunContext) -> tuple[bases.Base, bases.Base]:
  """Returns the bases of actor and critic with their SFT merged, on the host."""
  inputs = settings.inputs
  actor = bases.tuned(
    bases.load(settings.base, settings.model),
    run.artifact('sft', inputs.sft),
    settings.model,
  )
  if settings.one_base:
    return actor, actor
  critic = bases.tuned(
    bases.load(settings.critic_base, settings.critic),
    run.artifact('sft', inputs.critic_sft, settings.critic_size),
    settings.critic,
  )
  if difference := tokens.difference(actor.tokenizer, critic.tokenizer):
    raise ArtifactError(
      "config.critic_base: the critic reads the policy's tokens, and its tokenizer is "
      f"not the policy's: {difference}; both need a base with the same tokenizer"
    )
  return actor, critic


def origins(settings: PpoRun, run: RunContext) -> dict[str, str]:
  """Returns where both bases were, for the artifact."""
  actor = settings.base, run.artifact('sft', settings.inputs.sft)
  critic = actor
  if not settings.one_base:
    sft = run.artifact('sft', settings.inputs.critic_sft, settings.critic_size)
    critic = settings.critic_base, sft
  return bases.origin(*actor) | bases.origin(*critic, prefix='critic_')


def fingerprints(**read: Artifact) -> dict[str, Any]:
  """Returns what decides the numbers of artifacts: their weights, and the scales."""
  prints = {
    f'weights of {name}': artifact.fingerprint for name, artifact in read.items()
  }
  scales = {f'lora of {name}': artifact.info['lora'] for name, artifact in read.items()}
  return {**prints, **scales}


def identity_of(
  settings: PpoRun,
  dataset: PromptDataset,
  total: int,
  devices: int,
  inputs: dict[str, Any],
) -> dict[str, Any]:
  """Returns what has to be equal to resume, see `journal.identity`.

  Args:
    devices: over which a batch is split; they decide what `whiten_scope=device` gives.
    inputs: of `fingerprints`.
  """
  by_device = settings.ppo.whiten_scope == 'device'
  return journal.identity(
    settings,
    dataset.fingerprint,
    total_steps=total,
    **inputs,
    **({journal.DEVICES: devices} if by_device else {}),
    **journal.videos(settings, dataset.actor_features.contents, dataset.videos),
  )


def put_bases(
  settings: PpoRun, run: RunContext, actor: bases.Base, critic: bases.Base
) -> Bases:
  """Puts both bases on the devices, once if weights and quantization are the same."""

  def put(base: bases.Base, cfg: VlmConfig, quant: QuantConfig) -> Any:
    llama = {'llama': base.params['llama']}
    return placement.on_device(llama, cfg, run.mesh, quant=quant)

  actor_params = put(actor, settings.model, settings.quant)
  same_weights = critic.fingerprint == actor.fingerprint
  if same_weights and settings.critic_quant == settings.quant:
    return Bases(actor=actor_params, critic=actor_params)
  critic_params = put(critic, settings.critic, settings.critic_quant)
  return Bases(actor=actor_params, critic=critic_params)


def put_adapters(
  settings: PpoRun,
  run: RunContext,
  init: Artifact,
  reward: Artifact,
  optimizer: optax.GradientTransformation,
) -> tuple[Frozen, TrainState]:
  """Puts the frozen adapters and the training state on the devices.

  Args:
    init: artifact of the initialized policy; reward: of the reward model.
  """
  actor_lora, critic_lora = adapters.lora_of(init), adapters.lora_of(reward)
  of_actor = shardings.adapter(settings.model, actor_lora, run.mesh)
  of_critic = shardings.adapter(settings.critic, critic_lora, run.mesh)
  of_head = shardings.head(run.mesh)
  reward_head = heads.ScalarHead(
    **{k: jnp.asarray(v, jnp.float32) for k, v in reward.parts['head'].items()}
  )
  frozen = sharding.put(
    Frozen(init.parts['lora'], reward.parts['lora'], reward_head),
    Frozen(of_actor, of_critic, of_head),
  )
  dtype = settings.optim.adapter_dtype
  trainable = {'policy': copy(trees.cast(frozen.reference, dtype))}
  layout = {'policy': of_actor}
  if algorithms.LEARNERS[settings.ppo.algorithm].has_value:
    trainable |= initial_value(settings, critic_lora, frozen)
    layout |= {'value': of_critic, 'head': of_head}
  state = shardings.start(trainable, layout, optimizer, settings.seed, run.mesh)
  return frozen, state


def initial_value(settings: PpoRun, lora: LoraConfig, frozen: Frozen) -> dict:
  """Returns adapter and head of the value function: the reward model's, or fresh."""
  dtype, key = settings.optim.adapter_dtype, jax.random.key(settings.seed)
  if settings.ppo.value_adapter_init == 'reward':
    adapter = copy(trees.cast(frozen.reward, dtype))
  else:
    adapter = adapters.init_adapter(settings.critic, lora, key, dtype)
  if settings.ppo.value_head_init == 'reward':
    head = copy(frozen.reward_head)
  else:
    head = heads.init_head(key, settings.critic.llama.width, 'zero')
  return {'value': adapter, 'head': head}


def stop_ids(tokenizer: Tokenizer, texts: tuple[str, ...]) -> tuple[int, ...]:
  """Returns the piece of each text: ' ?' as a word of its own, '?' attached to one.

  Raises:
    ConfigError: a text is several pieces, of which the last would end an answer
      wherever it stands; or none, or the unknown one.
  """
  return tuple(_stop_id(tokenizer, text) for text in texts)


def _stop_id(tokenizer: Tokenizer, text: str) -> int:
  if text.startswith(' '):
    before, pieces = [], tokenizer.pieces(text.strip())
    if len(pieces) > 1 and not tokenizer.decode(np.asarray(pieces[:1])).strip():
      pieces = pieces[1:]  # the space is a piece of its own
  else:
    before, pieces = tokenizer.pieces('a'), tokenizer.pieces(f'a{text}')
  own = list(pieces[len(before) :])
  if list(pieces[: len(before)]) != list(before) or len(own) != 1:
    raise ConfigError(
      f'config.ppo.stop_texts: {text!r} must be one token of the policy, is '
      f'{len(own)}; an answer would end at its last one, wherever that stands'
    )
  if own[0] == tokenizer.unk:
    raise ConfigError(
      f"config.ppo.stop_texts: {text!r} is unknown to the policy's tokenizer, and "
      'every unknown token would end an answer'
    )
  return own[0]
