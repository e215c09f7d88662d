"""PPO against the learned reward: four adapters on two frozen bases; see `rl.ppo`."""

import pathlib

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import pairs, prompts
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import (
  algorithms,
  gate,
  held_out_judge,
  narration,
  reward_accuracy,
  start,
)
from vlm_rlaif_jax.rl.loop import train_loop
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import console, optim
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Bases, Frozen
from vlm_rlaif_jax.weights import adapters, artifacts, placement


def run(settings: PpoRun, workdir: str | pathlib.Path) -> dict:
  """Improves the initialized policy; leaves its adapter, and the value function."""
  run = RunContext(settings, workdir)
  gate.check_gate(settings, run)
  config, inputs = settings.ppo, settings.inputs
  for name in ('micro_batch', 'sample_batch'):
    sharding.check_batch(getattr(config, name), run.mesh, f'config.ppo.{name}')

  # Bases, the initialized policy, the reward model
  actor_base, critic_base = start.tuned_bases(settings, run)
  init_folder = run.artifact('init', inputs.init)
  init = artifacts.load(init_folder, 'init', actor_base.fingerprint)
  reward_folder = run.artifact('reward', inputs.reward, settings.critic_size)
  reward = artifacts.load(reward_folder, 'reward', critic_base.fingerprint)
  gate.check_scoring(reward, settings.scoring)
  gate.say_other_pairs(settings, run, reward)
  gate.say_other_labeler(settings, run, critic_base)
  tokenizer = actor_base.tokenizer
  stop_texts = () if config.stop_at == 'eos' else config.stop_texts
  stops = start.stop_ids(tokenizer, stop_texts)
  actor_model = Vlm(settings.model, adapters.lora_of(init))
  critic_model = Vlm(settings.critic, adapters.lora_of(reward))

  # Prompts and the visual tokens of their videos
  dataset = PromptDataset(
    settings, run, actor_model, critic_model, actor_base, critic_base
  )
  suffix = tuple(int(i) for i in pairs.prompt_ids(tokenizer, settings.scoring))
  dataset.check_reward_room(
    len(suffix),
    'config.ppo.response_tokens',
    'lower it, config.ppo.query_tokens or config.data.frames',
  )
  total = config.iterations or dataset.rollouts

  # Networks and the state of training, on the devices
  learner = algorithms.LEARNERS[config.algorithm](
    actor=actor_model,
    critic=critic_model,
    config=config,
    optimizer=optim.make_optimizer(settings.optim),
    eos=tokenizer.eos,
    stops=stops,
    suffix=suffix,
    devices=sharding.batch_shards(run.mesh),
    unk=tokenizer.unk,
    other_ends=tokenizer.other_ends,
  )
  bases = start.put_bases(settings, run, actor_base, critic_base)
  frozen, state = start.put_adapters(settings, run, init, reward, learner.optimizer)
  _write_layout(run.folder / 'layout.txt', bases, frozen, state)

  # The reward model on the base that it will score on
  accuracy = {}
  if settings.gate.reward_accuracy and not settings.gate.override:
    accuracy = reward_accuracy.measure(
      settings,
      run,
      critic_model,
      dataset.critic_features,
      critic_base.tokenizer,
      bases,
      frozen,
    )
    gate.check_reward(settings, run, accuracy)

  # Rollout, score, estimate, update
  inputs_used = start.fingerprints(init=init, reward=reward)
  narratives = narration.narrate(settings, run, dataset, bases.actor)
  judge = held_out_judge.open_judge(settings, narratives)
  parts, history = train_loop(
    settings, run, learner, bases, frozen, state, dataset, total, inputs_used, judge
  )

  # Artifact and summary
  info = {
    'stage': 'ppo',
    'base': actor_base.fingerprint,
    'critic_base': critic_base.fingerprint,
    **start.origins(settings, run),
    'lora': init.info['lora'],
    **({'critic_lora': reward.info['lora']} if learner.has_value else {}),
    'init': init.fingerprint,
    'reward': reward.fingerprint,
    'template': prompts.TEMPLATE,
  }
  return run.finish(
    artifacts.Artifact({'lora': parts.pop('policy'), **parts}, info),
    {
      'prompts': len(dataset.train),
      'too_long': dataset.too_long,
      'inputs': inputs_used,
      'reward_model': accuracy,
      'trainable': trees.size(state.trainable),
      'bases': {
        'actor': placement.base_summary(bases.actor, settings.quant),
        'critic': placement.base_summary(bases.critic, settings.critic_quant),
        'shared': bases.actor is bases.critic,
      },
      **history,
    },
  )


def _write_layout(
  path: pathlib.Path, bases: Bases, frozen: Frozen, state: TrainState
) -> None:
  """Writes where everything lies that is on the devices from first step to last."""
  shared = bases.actor is bases.critic
  console.write_sharding_table(
    path,
    {
      'bases' if shared else "actor's base": bases.actor,
      **({} if shared else {"critic's base": bases.critic}),
      'reference and reward': frozen,
      'policy and value' if 'value' in state.trainable else 'policy': state.trainable,
      'optimizer': state.opt_state,
    },
  )
