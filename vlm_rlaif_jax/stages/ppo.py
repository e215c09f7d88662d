"""PPO against the learned reward: four adapters on two frozen bases.

    policy, reference   on the actor's base; both start as the initialized policy
    value, reward       on the critic's base; both start as the reward model

An iteration is four pure functions:

    rollout   = sample(...)      answers, log-probabilities, mask
    scores    = evaluate(...)    reference, values, reward
    estimates = estimate(...)    KL-shaped rewards, advantages, returns
    state     = update(...)      epochs x minibatches of the clipped losses
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import pairs, prompts
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl.gate import check_gate, check_scoring
from vlm_rlaif_jax.rl.loop import train_loop
from vlm_rlaif_jax.rl.ppo import PpoLearner
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import console, optim, shardings
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import copy
from vlm_rlaif_jax.types import Bases, Frozen
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement

# ---------------------------------------------------------------- the algorithm


# ---------------------------------------------------------------- the run


def initial_value(settings: PpoRun, lora: LoraConfig, frozen: Frozen) -> dict:
  """Adapter and head of the value function, from the reward model or anew."""
  dtype, key = settings.optim.adapter_dtype, jax.random.key(settings.seed)
  return {
    'value': copy(trees.cast(frozen.reward, dtype))
    if settings.ppo.value_adapter_init == 'reward'
    else adapters.init_adapter(settings.critic, lora, key, dtype),
    'head': copy(frozen.reward_head)
    if settings.ppo.value_head_init == 'reward'
    else heads.init_head(key, settings.critic.llama.width, 'zero'),
  }


def run(settings: PpoRun, workdir: str | pathlib.Path) -> dict:
  """Improves the initialized policy; leaves the adapters of policy and value."""
  space = RunContext(settings, workdir)
  check_gate(settings, space)
  ppo = settings.ppo
  for name in ('micro_batch', 'sample_batch'):
    sharding.check_batch(getattr(ppo, name), space.mesh, f'config.ppo.{name}')
  actor_base, critic_base = _tuned_bases(settings, space)
  init = artifacts.load(
    space.artifact('init', settings.inputs.init), 'init', actor_base.fingerprint
  )
  reward = artifacts.load(
    space.artifact('reward', settings.inputs.reward, settings.critic_size),
    'reward',
    critic_base.fingerprint,
  )
  check_scoring(reward, settings.scoring)
  tokenizer = actor_base.tokenizer
  actor_lora, critic_lora = adapters.lora_of(init), adapters.lora_of(reward)
  actor, critic = Vlm(settings.model, actor_lora), Vlm(settings.critic, critic_lora)

  questions = PromptDataset(settings, space, actor, critic, actor_base, critic_base)
  total = ppo.iterations or len(questions.train) // ppo.rollout_batch
  algorithm = PpoLearner(
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
  of_actor = shardings.adapter(settings.model, actor_lora, space.mesh)
  of_critic = shardings.adapter(settings.critic, critic_lora, space.mesh)
  of_head = shardings.head(space.mesh)
  frozen = sharding.put(
    Frozen(init.parts['lora'], reward.parts['lora'], reward_head),
    Frozen(of_actor, of_critic, of_head),
  )
  dtype = settings.optim.adapter_dtype
  trainable = {
    'policy': copy(trees.cast(frozen.reference, dtype)),
    **initial_value(settings, critic_lora, frozen),
  }
  state = shardings.start(
    trainable,
    {'policy': of_actor, 'value': of_critic, 'head': of_head},
    algorithm.optimizer,
    settings.seed,
    space.mesh,
  )
  shared = networks.actor is networks.critic
  console.write_sharding_table(
    space.folder / 'layout.txt',
    {
      'bases' if shared else "actor's base": networks.actor,
      **({} if shared else {"critic's base": networks.critic}),
      'reference and reward': frozen,
      'policy and value': state.trainable,
      'optimizer': state.opt_state,
    },
  )
  state, history = train_loop(
    settings, space, algorithm, networks, frozen, state, questions, total
  )

  artifact = artifacts.Artifact(
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
  artifacts.save(space.folder / 'artifact', artifact)
  summary = {
    'stage': 'ppo',
    'lineage': settings.lineage,
    'iterations': total,
    'prompts': len(questions.train),
    'too_long': questions.too_long,
    'skipped': space.skipped.reasons,
    'trainable': trees.size(state.trainable),
    'bases': {
      'actor': placement.base_summary(networks.actor, settings.quant),
      'critic': placement.base_summary(networks.critic, settings.critic_quant),
      'shared': shared,
    },
    **history,
    'artifact': str(space.folder / 'artifact'),
    'fingerprint': artifact.fingerprint,
  }
  artifacts.write_summary(space.folder, summary)
  return summary


def stop_ids(tokenizer, texts: tuple[str, ...]) -> tuple[int, ...]:
  """The last piece of each text: ' ?' as a word of its own, '?' glued to another."""
  return tuple(
    tokenizer.pieces(text.strip() if text.startswith(' ') else f'a{text}')[-1]
    for text in texts
  )


def origins(settings: PpoRun, space: RunContext) -> dict[str, str]:
  """Where both bases were, for the artifact."""
  actor = settings.base, space.artifact('sft', settings.inputs.sft)
  critic = actor
  if not settings.one_base:
    sft = space.artifact('sft', settings.inputs.critic_sft, settings.critic_size)
    critic = settings.critic_base, sft
  return bases.origin(*actor) | bases.origin(*critic, prefix='critic_')


def _tuned_bases(settings: PpoRun, space: RunContext):
  actor = bases.tuned(
    bases.load(settings.base, settings.model),
    space.artifact('sft', settings.inputs.sft),
    settings.model,
  )
  if settings.one_base:
    return actor, actor
  critic = bases.tuned(
    bases.load(settings.critic_base, settings.critic),
    space.artifact('sft', settings.inputs.critic_sft, settings.critic_size),
    settings.critic,
  )
  return actor, critic


def _networks(settings, space, actor_base, critic_base) -> Bases:
  """Both bases on the device; one copy where they are the same weights, held alike."""
  put = lambda base, cfg, held: placement.on_device(
    {'llama': base.params['llama']}, cfg, space.mesh, quant=held
  )
  actor = put(actor_base, settings.model, settings.quant)
  shared = critic_base.fingerprint == actor_base.fingerprint
  if shared and settings.critic_quant == settings.quant:
    return Bases(actor=actor, critic=actor)
  return Bases(
    actor=actor, critic=put(critic_base, settings.critic, settings.critic_quant)
  )
