"""Phases of a PPO iteration."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import pairs
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan import generation
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.encoding import encoding_phases
from vlm_rlaif_jax.plan.phase import (
  CHARS_PER_TOKEN,
  EOS,
  Phase,
  filled_share,
  shape_of,
  visual_tokens,
  weight_bytes,
)
from vlm_rlaif_jax.plan.phases import Loras
from vlm_rlaif_jax.rl import algorithm, algorithms, flops, phase_arguments
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import optim, shardings
from vlm_rlaif_jax.train.profiling import flops as model_flops
from vlm_rlaif_jax.types import Bases, Frozen, Prompts


def ppo_trees(settings: PpoRun, mesh: Mesh, actor: LoraConfig, critic: LoraConfig):
  """Returns (bases, frozen, state, optimizer) of a run as shapes with shardings."""
  adapter = shardings.abstract_adapter
  dtype = settings.optim.adapter_dtype
  optimizer = optim.make_optimizer(settings.optim)

  def describe(cfg: VlmConfig, quant: QuantConfig) -> Any:
    return shardings.abstract_base(cfg, mesh, 'llama', quant=quant)

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
  trainable = {'policy': adapter(settings.model, actor, mesh, dtype)}
  if algorithms.LEARNERS[settings.ppo.algorithm].has_value:
    trainable['value'] = adapter(settings.critic, critic, mesh, dtype)
    trainable['head'] = shardings.abstract_head(settings.critic, mesh)
  return (
    networks,
    frozen,
    shardings.abstract_state(trainable, optimizer, mesh),
    optimizer,
  )


def ppo_resident(settings: PpoRun, mesh: Mesh, loras: Loras) -> Any:
  """Returns bases, frozen adapters and the training state as shapes."""
  return ppo_trees(settings, mesh, *loras)[:3]


def ppo_phases(settings: PpoRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases of an iteration: encode, rollout, score, estimate, update.

  Where a judge or the reward model reads narratives, also that of their captions, and
  that of the judge.
  """
  actor, critic = loras
  cfg = settings.ppo
  networks, frozen, state, optimizer = ppo_trees(settings, mesh, actor, critic)
  suffix, of_rows = _reward_suffix(settings)
  learner = algorithms.LEARNERS[cfg.algorithm](
    actor=Vlm(settings.model, actor),
    critic=Vlm(settings.critic, critic),
    config=cfg,
    optimizer=optimizer,
    eos=EOS,
    stops=() if cfg.stop_at == 'eos' else (EOS + 1, EOS + 2),
    suffix=(EOS + 1,) * suffix,
    devices=sharding.batch_shards(mesh),
  )
  programs = algorithm.programs(learner, mesh, networks, frozen, state)

  rows = cfg.rollout_batch
  prompts = shardings.rows(mesh, _prompts(settings, suffix if of_rows else 0))

  def put(tree: Any) -> Any:
    return sharding.abstract(tree, sharding.replicated(mesh))

  key = put(jax.eval_shape(lambda: jax.random.key(0)))
  number = put(shape_of(jnp.float32))
  arguments = phase_arguments.arguments(
    programs, networks, frozen, state, prompts, cfg.response_tokens, key, number
  )
  rollout, scores, correctness, *_ = arguments['estimate']
  estimates = arguments['update'][4]
  resident = (networks, frozen, state)

  work = _work(settings, mesh, networks, loras, suffix)
  micro = ('config.ppo.micro_batch', cfg.micro_batch)
  return [
    *encoding(settings, mesh),
    Phase(
      'rollout',
      programs['rollout'],
      arguments['rollout'],
      (resident, prompts, key),
      work['rollout'],
      loop_iterations=cfg.response_tokens,
      tuning_flag=('config.ppo.sample_batch', cfg.sample_batch or rows),
      filled=filled_share(flops.lengths(settings)[0], cfg.response_tokens),
      note=''
      if cfg.sample_batch
      else 'all answers are sampled at once; fewer: --config.ppo.sample_batch=N',
    ),
    Phase(
      'score',
      programs['score'],
      arguments['score'],
      (resident, rollout),
      work['score'],
      tuning_flag=micro,
    ),
    *judging(settings, mesh, networks.actor, (resident, rollout, scores)),
    Phase(
      'estimate',
      programs['estimate'],
      arguments['estimate'],
      (resident, rollout, scores, correctness, correctness),
      (),
    ),
    Phase(
      'update',
      programs['update'],
      arguments['update'],
      (resident, rollout, scores, estimates),
      work['update'],
      tuning_flag=micro,
    ),
  ]


def _prompts(settings: PpoRun, suffix: int) -> Prompts:
  """Returns the prompts of an iteration as shapes.

  Args:
    suffix: tokens of the reward prompt of each row; 0: they have none of their own.
  """
  rows, text = settings.ppo.rollout_batch, settings.ppo.query_tokens

  def visual(cfg: VlmConfig) -> Any:
    tokens = visual_tokens(settings, cfg)
    return shape_of(settings.model.dtype, rows, tokens, cfg.llama.width)

  return Prompts(
    ids=shape_of(jnp.int32, rows, text),
    valid=shape_of(jnp.bool_, rows, text),
    actor_visual=visual(settings.model),
    critic_visual=visual(settings.critic),
    example_id=shape_of(jnp.int32, rows),
    reward_suffix=shape_of(jnp.int32, rows, suffix) if suffix else None,
  )


def encoding(settings: PpoRun, mesh: Mesh) -> list[Phase]:
  """Returns the phases that encode videos by the base of each role.

  A video is decoded once for both where they read pictures of one size; tower and
  projector of both are on the devices then.
  """
  actor, critic, rows = settings.model, settings.critic, settings.ppo.rollout_batch
  if settings.one_base:
    return encoding_phases(settings, actor, mesh, answers=rows)

  def towers(cfg: VlmConfig) -> Any:
    if actor.vision.image_size != critic.vision.image_size:
      return ()
    alone = sharding.data_mesh(mesh.devices.flat)
    return shardings.abstract_base(cfg, alone, 'tower', 'projector')

  return [
    *encoding_phases(settings, actor, mesh, answers=rows, resident=towers(critic)),
    *encoding_phases(
      settings, critic, mesh, ' (critic)', answers=rows, resident=towers(actor)
    ),
  ]


def judging(settings: PpoRun, mesh: Mesh, base: Any, resident: Any) -> list[Phase]:
  """Returns the phases of narratives and of the judge; none where nothing reads them.

  Narratives are written before the first iteration. Of answers that are rewarded by the
  judge, one claim each is counted: how many there are, the answers decide. Where it
  only chooses a policy, it judges between iterations.

  Args:
    base: shapes of the actor's decoder, which is the judge without its adapter.
    resident: shapes of what is on the devices meanwhile.
  """
  if not settings.narrates:
    return []
  judge, data = settings.judge, settings.data
  batch = generation.GenerationPhases(
    settings, mesh, judge.batch, 'config.judge.batch', None, base, resident
  )
  clip = min(data.frames, judge.clip_frames)
  captioning = narrative.caption_sampling(judge, EOS)
  phases = [batch.answers('caption', data.buckets[0], clip, captioning, times=0)]
  if 'judge' in (settings.ppo.reward, settings.ppo.select):
    rewards = settings.ppo.reward == 'judge'
    times = -(-settings.ppo.rollout_batch // judge.batch) if rewards else 0
    phases.append(batch.next_token('judge', data.buckets[-1], data.frames, times=times))
  return phases


def _reward_suffix(settings: PpoRun) -> tuple[int, bool]:
  """Returns the most tokens of the reward prompt, and whether each row has its own."""
  suffix = -(-len(pairs.reward_prompt(settings.scoring)) // CHARS_PER_TOKEN)
  if settings.scoring.placeholder != 'captions':
    return suffix, False
  judge = settings.judge
  clips = narrative.clip_windows(settings.data.frames, judge.clip_frames)
  return suffix + judge.caption_tokens * len(clips), True


def _work(
  settings: PpoRun, mesh: Mesh, bases: Bases, loras: Loras, suffix: int
) -> dict[str, tuple[Work, ...]]:
  """Returns phase -> its parts, with the bytes that each has to move."""
  config = settings.ppo
  rows = config.rollout_batch
  prompt, _ = flops.lengths(settings)
  rounds = rows // (config.sample_batch or rows)
  parts = rows // config.micro_batch
  cache = model_flops.cache_bytes(
    settings.model.llama,
    config.rollout_cache,
    jnp.dtype(settings.model.dtype).itemsize,
  )
  cache /= mesh.shape['tensor']
  per_device = rows / sharding.batch_shards(mesh)
  cached = per_device * (prompt + config.response_tokens / 2) * cache
  weights = {
    False: weight_bytes(bases.actor, mesh), True: weight_bytes(bases.critic, mesh)
  }  # fmt: skip
  decode_weights = weights[False]
  if config.rollout_weights == 'merged':  # in 16 bits, however the base is stored
    native = QuantConfig(residency='native')
    merged = shardings.abstract_base(settings.model, mesh, 'llama', quant=native)
    decode_weights = weight_bytes(merged, mesh)

  def bytes_moved(name: str, count: flops.Count, recomputes: bool) -> float:
    read = weights[count.of_critic]
    if name == 'prefill':
      return rounds * read
    if name == 'decode':
      return config.response_tokens * (rounds * decode_weights + cached)
    if count.phase == 'update':
      return config.epochs * parts * (3 if recomputes else 2) * read
    return parts * read

  def recomputed(count: flops.Count, model: VlmConfig, lora: LoraConfig) -> float:
    if count.phase != 'update' or model.remat not in ('full', 'names'):
      return 0.0
    if model.remat == 'full':
      return count.recomputed
    each = model_flops.recomputed_by_names(
      model.llama, lora, flops.lengths(settings, count.of_critic)[1]
    )
    return config.epochs * rows * each

  work: dict[str, list[Work]] = {}
  for name, count in flops.counts(settings, *loras, suffix).items():
    model = settings.critic if count.of_critic else settings.model
    part = Work(
      name.removeprefix('update '),
      count.needed,
      bytes_moved(name, count, model.remat == 'full'),
      recomputed(count, model, loras[count.of_critic]),
    )
    work.setdefault(count.phase, []).append(part)
  return {phase: tuple(parts) for phase, parts in work.items()}
