"""Phases of a PPO iteration."""

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import pairs
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.encoding import encoding_phases
from vlm_rlaif_jax.plan.phase import (
  CHARS_PER_TOKEN,
  EOS,
  Phase,
  shape_of,
  visual_tokens,
  weight_bytes,
)
from vlm_rlaif_jax.rl import ppo
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import optim, shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.types import Bases, Frozen, Prompts, Rollout


def ppo_trees(settings: PpoRun, mesh, actor: LoraConfig, critic: LoraConfig):
  """(bases, frozen, state, optimizer) of a PPO run as shapes that carry a layout."""
  adapter = shardings.abstract_adapter
  dtype = settings.optim.adapter_dtype
  optimizer = optim.make_optimizer(settings.optim)
  describe = lambda cfg, held: shardings.abstract_base(cfg, mesh, 'llama', held=held)
  base = describe(settings.model, settings.quant)
  shared = settings.one_base and settings.critic_quant == settings.quant
  networks = Bases(
    actor=base,
    critic=base if shared else describe(settings.critic, settings.critic_quant),
  )
  frozen = Frozen(
    reference=adapter(settings.model, actor, mesh),
    reward=adapter(settings.critic, critic, mesh),
    reward_head=shardings.abstract_head(settings.critic, mesh),
  )
  trainable = {
    'policy': adapter(settings.model, actor, mesh, dtype),
    'value': adapter(settings.critic, critic, mesh, dtype),
    'head': shardings.abstract_head(settings.critic, mesh),
  }
  return (
    networks,
    frozen,
    shardings.abstract_state(trainable, optimizer, mesh),
    optimizer,
  )


def ppo_phases(
  settings: PpoRun, mesh, actor: LoraConfig, critic: LoraConfig
) -> list[Phase]:
  cfg = settings.ppo
  networks, frozen, state, optimizer = ppo_trees(settings, mesh, actor, critic)
  suffix = -(-len(pairs.reward_prompt(settings.scoring)) // CHARS_PER_TOKEN)
  algorithm = ppo.PpoLearner(
    actor=Vlm(settings.model, actor),
    critic=Vlm(settings.critic, critic),
    ppo=cfg,
    optimizer=optimizer,
    eos=EOS,
    stops=() if cfg.stop_at == 'eos' else (EOS + 1, EOS + 2),
    suffix=(EOS + 1,) * suffix,
    devices=sharding.batch_shards(mesh),
  )
  programs = ppo.programs(algorithm, mesh, networks, frozen, state)

  rows, visual, text = cfg.rollout_batch, visual_tokens(settings), cfg.query_tokens
  prompts = Prompts(
    ids=shape_of(jnp.int32, rows, text),
    valid=shape_of(jnp.bool_, rows, text),
    actor=shape_of(settings.model.dtype, rows, visual, settings.model.llama.width),
    critic=shape_of(settings.critic.dtype, rows, visual, settings.critic.llama.width),
    number=shape_of(jnp.int32, rows),
  )
  prompts = shardings.rows(mesh, prompts)
  put = lambda tree: sharding.abstract(tree, sharding.replicated(mesh))
  key = put(jax.eval_shape(lambda: jax.random.key(0)))
  rollout, scores, estimates = _results(
    algorithm, networks, frozen, state, prompts, mesh
  )
  gold = shardings.rows(mesh, shape_of(jnp.float32, rows))
  held = (networks, frozen, state)

  work = _ppo_work(settings, mesh, networks, actor, critic, suffix)
  micro = ('config.ppo.micro_batch', cfg.micro_batch)
  return [
    *encoding_phases(settings, settings.model, mesh, ''),
    *(
      []
      if settings.one_base
      else encoding_phases(settings, settings.critic, mesh, ' (critic)')
    ),
    Phase(
      'rollout',
      programs['rollout'],
      (networks, state.trainable['policy'], prompts, key),
      (held, prompts, key),
      work['rollout'],
      trips=cfg.response_tokens,
      knob=('config.ppo.sample_batch', cfg.sample_batch or rows),
    ),
    Phase(
      'score',
      programs['score'],
      (networks, state.trainable, frozen, rollout),
      (held, rollout),
      work['score'],
      knob=micro,
    ),
    Phase(
      'estimate',
      programs['estimate'],
      (rollout, scores, gold, gold),
      (held, rollout, scores, gold, gold),
      (),
    ),
    Phase(
      'update',
      programs['update'],
      (state, networks, rollout, scores, estimates, put(shape_of(jnp.float32))),
      (held, rollout, scores, estimates),
      work['update'],
      knob=micro,
    ),
  ]


def _results(algorithm, networks, frozen, state, prompts, mesh):
  """Shapes of a rollout, its scores and its estimates."""
  rows, answer = prompts.ids.shape[0], algorithm.ppo.response_tokens
  by_row = lambda dtype, *shape: shape_of(dtype, rows, *shape)
  rollout = Rollout(
    prompts=prompts,
    **shardings.rows(
      mesh,
      {
        'tokens': by_row(jnp.int32, answer),
        'mask': by_row(jnp.bool_, answer),
        'sampled': by_row(jnp.float32, answer),
        'stopped': by_row(jnp.bool_),
      },
    ),
    adapter=sharding.abstract(shape_of(jnp.uint32), sharding.replicated(mesh)),
  )
  scores = jax.eval_shape(
    algorithm.evaluate, networks, state.trainable, frozen, rollout
  )
  estimates, _ = jax.eval_shape(
    algorithm.estimate, rollout, scores, by_row(jnp.float32), by_row(jnp.float32)
  )
  return rollout, shardings.rows(mesh, scores), shardings.rows(mesh, estimates)


def _ppo_work(settings: PpoRun, mesh, networks, actor, critic, suffix: int) -> dict:
  cfg, rows = settings.ppo, settings.ppo.rollout_batch
  small, large = settings.model.llama, settings.critic.llama
  prompt = cfg.query_tokens + visual_tokens(settings) - 1
  answer, length = cfg.response_tokens, prompt + cfg.response_tokens
  read_actor = weight_bytes(networks.actor, mesh)
  read_critic = weight_bytes(networks.critic, mesh)
  read_step = read_actor
  if cfg.rollout_weights == 'merged':  # in 16 bits, whatever the base is held in
    held = QuantConfig(residency='native')
    base = shardings.abstract_base(settings.model, mesh, 'llama', held=held)
    read_step = weight_bytes(base, mesh)
  rounds = rows // (cfg.sample_batch or rows)
  parts = rows // cfg.micro_batch
  per_device = rows / sharding.batch_shards(mesh)
  cache = flops.cache_bytes(small) / mesh.shape['tensor']
  cached = per_device * (prompt + answer / 2) * cache
  forward = lambda c, lora, n, read=0: rows * flops.forward(c, lora, n, read)

  def trained(name, model, lora, read, weights):
    needed, again = flops.training(model.llama, lora, length, read)
    remat = model.remat == 'full'
    return Work(
      name,
      cfg.epochs * rows * needed,
      cfg.epochs * parts * (3 if remat else 2) * weights,
      cfg.epochs * rows * again if remat else 0.0,
    )

  return {
    'rollout': (
      Work('prefill', forward(small, actor, prompt, 1), rounds * read_actor),
      Work(
        'decode',
        rows * flops.decode(small, actor, prompt, answer),
        answer * (rounds * read_step + cached),
      ),
    ),
    'score': (
      Work('policy', forward(small, actor, length, answer), parts * read_actor),
      Work('reference', forward(small, actor, length, answer), parts * read_actor),
      Work('value', forward(large, critic, length), parts * read_critic),
      Work('reward', forward(large, critic, length + suffix), parts * read_critic),
    ),
    'update': (
      trained('policy', settings.model, actor, answer, read_actor),
      trained('value', settings.critic, critic, 0, read_critic),
    ),
  }
