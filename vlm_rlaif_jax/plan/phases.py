"""The programs of a stage with shapes in place of arrays, and the work in each.

The programs are the stage's own (`stages.ppo.programs` and its like); only the arrays
are missing.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax import decode, encode, inference
from vlm_rlaif_jax.config.build import UserError
from vlm_rlaif_jax.config.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.config.stages import (
  EvalRun,
  InitRun,
  LabelRun,
  PpoRun,
  RewardRun,
  Run,
  SftRun,
)
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import pairs
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.stages import eval as evaluation
from vlm_rlaif_jax.stages import label, ppo, reward
from vlm_rlaif_jax.train import flops, layouts, optim, supervised
from vlm_rlaif_jax.types import Bases, Frozen, Prompts, Rollout

EOS = 2
LETTERS_A_TOKEN = 4  # of the reward prompt, whose tokenizer may not be here
VIDEOS = 16  # encoded at a time


@dataclasses.dataclass(frozen=True)
class Phase:
  """A program and what it is called with.

  Attributes:
    arguments: shapes that carry a layout.
    resident: what lies on the devices during the phase, read by it or not.
    times: how often it runs in one iteration (PPO), optimiser step or batch of
      questions.
    trips: of its loop that ends with the last answer.
    knob: the setting that its temporaries follow, and its value; '' if none does.
  """

  name: str
  program: sharding.Program
  arguments: tuple
  resident: Any
  work: tuple[Work, ...]
  times: float = 1.0
  trips: int = 1
  knob: tuple[str, int] = ('', 0)


def of(settings: Run, mesh, loras: tuple[LoraConfig, LoraConfig]) -> list[Phase]:
  """Every compiled phase of a stage.

  Args:
    loras: adapters of PPO's actor and critic, which earlier stages decide.
  """
  if isinstance(settings, PpoRun):
    return _ppo(settings, mesh, *loras)
  if isinstance(settings, RewardRun):
    return [*_encode(settings, settings.model, mesh, ''), _reward(settings, mesh)]
  if isinstance(settings, SftRun | InitRun):
    return [*_encode(settings, settings.model, mesh, ''), _supervised(settings, mesh)]
  if isinstance(settings, LabelRun):
    return [*_encode(settings, settings.model, mesh, ''), *_label(settings, mesh)]
  if isinstance(settings, EvalRun):
    asked = _eval(settings, mesh, loras[0])
    return [*_encode(settings, settings.model, mesh, ''), *asked]
  raise UserError(
    f'config.stage: no plan for {settings.stage}; one of sft, label, init, reward, '
    'ppo, eval'
  )


def _shape(dtype, *shape) -> Any:  # stands for an array
  return jax.ShapeDtypeStruct(shape, dtype)


def _visual(settings: Run) -> int:
  return settings.data.frames + settings.model.vision.patches


def _weight_bytes(described, mesh) -> float:
  """What one device reads to use all weights once: gathered over fsdp, not tensor."""
  leaves = jax.tree.leaves(described)
  return sum(
    sharding.bytes_per_device(leaf)
    * (mesh.shape['fsdp'] if 'fsdp' in str(leaf.sharding.spec) else 1)
    for leaf in leaves
  )


# ---------------------------------------------------------------- feature encoding


def _encode(settings: Run, cfg: VlmConfig, mesh, who: str) -> list[Phase]:
  """The tower and the projector; PPO and reward read pooled tokens, SFT patches."""
  frames, vision = settings.data.frames, cfg.vision
  mesh = sharding.data_mesh(mesh.devices.flat)
  params = layouts.described_base(cfg, mesh, 'tower', 'projector')
  shards = sharding.batch_shards(mesh)
  videos = max(shards, VIDEOS // shards * shards)
  see, project = encode.programs(Vlm(cfg), mesh, params)
  pixels = _shape(jnp.uint8, videos * frames, vision.image_size, vision.image_size, 3)
  patches = _shape(jnp.dtype(cfg.dtype), videos, frames, vision.patches, vision.width)
  read = {name: _weight_bytes(params[name], mesh) for name in params}
  answers = settings.ppo.rollout_batch if isinstance(settings, PpoRun) else 0
  phases = [
    Phase(
      f'encode{who}',
      see,
      (params, layouts.rows(mesh, pixels)),
      params,
      (Work('tower', videos * frames * flops.tower(vision), read['tower']),),
      answers / videos,
    )
  ]
  if not isinstance(settings, SftRun):
    pooled = videos * flops.projector(vision, cfg.llama.width, frames)
    phases.append(
      Phase(
        f'project{who}',
        project,
        (params, layouts.rows(mesh, patches)),
        params,
        (Work('projector', pooled, read['projector']),),
        answers / videos,
      )
    )
  return phases


# ---------------------------------------------------------------- supervised stages


def _state(cfg: VlmConfig, settings, mesh, names):
  """A training state of shapes, its optimiser and its rate."""
  kinds = {
    'lora': lambda: layouts.described_adapter(
      cfg, settings.lora, mesh, settings.optim.adapter_dtype
    ),
    'projector': lambda: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding),
      layouts.described_base(cfg, mesh, 'projector')['projector'],
    ),
    'head': lambda: layouts.described_head(cfg, mesh),
  }
  optimizer = optim.make_optimizer(settings.optim)
  state = layouts.described_state({n: kinds[n]() for n in names}, optimizer, mesh)
  return state, optimizer, optim.learning_rate(settings.optim, 1000)


def _supervised(settings: SftRun | InitRun, mesh) -> Phase:
  """SFT (patches, projector trained) or policy initialisation (visual tokens)."""
  cfg, batch = settings.model, settings.optim.batch_size
  projects = isinstance(settings, SftRun)
  text = settings.data.buckets[-1]
  names = ('lora', 'projector') if projects else ('lora',)
  state, optimizer, rate = _state(cfg, settings, mesh, names)
  frozen = layouts.described_base(cfg, mesh, 'llama', held=settings.quant)
  model = Vlm(cfg, settings.lora)
  program = supervised.program(
    lambda t, b, part, key: supervised.loss(model, b, t, part, key),
    optimizer,
    rate,
    settings.optim.accumulate,
    mesh,
    state,
    frozen,
  )
  vision, frames = cfg.vision, settings.data.frames
  seen = (
    {'patches': _shape(cfg.dtype, batch, frames, vision.patches, vision.width)}
    if projects
    else {'tokens': _shape(cfg.dtype, batch, _visual(settings), cfg.llama.width)}
  )
  rows = {
    'ids': _shape(jnp.int32, batch, text), 'target': _shape(jnp.bool_, batch, text)
  }  # fmt: skip
  arguments = (state, frozen, layouts.rows(mesh, {**rows, **seen}))
  length = text + _visual(settings) - 1
  needed, again = flops.training(cfg.llama, settings.lora, length, text)
  if projects:
    needed += 3 * flops.projector(vision, cfg.llama.width, frames)
  return Phase(
    settings.stage,
    program,
    arguments,
    arguments,
    (_training('update', batch, needed, again, cfg, frozen, settings, mesh),),
    knob=('config.optim.accumulate', settings.optim.accumulate),
  )


def _training(name, rows, needed, again, cfg, frozen, settings, mesh) -> Work:
  passes = 3 if cfg.remat == 'full' else 2
  read = passes * settings.optim.accumulate * _weight_bytes(frozen, mesh)
  return Work(name, rows * needed, read, rows * again if cfg.remat == 'full' else 0.0)


def _reward(settings: RewardRun, mesh) -> Phase:
  cfg, batch = settings.model, settings.optim.batch_size
  text = settings.data.buckets[-1]
  state, optimizer, rate = _state(cfg, settings, mesh, ('lora', 'head'))
  frozen = layouts.described_base(cfg, mesh, 'llama', held=settings.quant)
  step, _ = reward.programs(
    settings, Vlm(cfg, settings.lora), optimizer, rate, mesh, state, frozen
  )
  rows = {
    'ids': _shape(jnp.int32, batch, 2, text),
    'valid': _shape(jnp.bool_, batch, 2, text),
    'preferred': _shape(jnp.int32, batch),
    'weight': _shape(jnp.float32, batch),
    'tokens': _shape(cfg.dtype, batch, _visual(settings), cfg.llama.width),
  }
  arguments = (state, frozen, layouts.rows(mesh, rows))
  needed, again = flops.training(cfg.llama, settings.lora, text + _visual(settings) - 1)
  return Phase(
    'reward',
    step,
    arguments,
    arguments,
    (_training('update', 2 * batch, needed, again, cfg, frozen, settings, mesh),),
    knob=('config.optim.accumulate', settings.optim.accumulate),
  )


# ---------------------------------------------------------------- asking


def _label(settings: LabelRun, mesh) -> list[Phase]:
  """Two answers a question, captions of clips, and the judge's longest prompt.

  Questions and captions are of the shortest bucket, judgements of the longest. By
  claims, one statement a question is counted: how many there are, the answers decide.
  """
  data, said = settings.data, settings.label
  clips = label.clip_windows(data.frames, said.clip_frames)
  clip = clips[0][1] - clips[0][0]
  twice = 2 if said.judge == 'options' and said.both_orders else 1
  asked = _Asked(settings, mesh, said.batch, 'config.label.batch', None)
  short, long = data.buckets[0], data.buckets[-1]
  draw, tell = label.sampling(said, EOS), label.telling(said, EOS)
  return [
    asked.answers('answer', short, data.frames, draw, copies=2),
    asked.answers('caption', short, clip, tell, times=len(clips)),
    asked.next_token('judge', long, data.frames, times=twice),
  ]


def _eval(settings: EvalRun, mesh, lora: LoraConfig) -> list[Phase]:
  """Answers and descriptions of the model with the most beside its base."""
  beside = lora if has_adapter(settings) else None
  asked = _Asked(settings, mesh, settings.eval.batch, 'config.eval.batch', beside)
  short, frames = settings.data.buckets[0], settings.data.frames
  how = {
    name: evaluation.sampling(settings.eval, name, EOS) for name in ('qa', 'describe')
  }
  return [asked.answers(name, short, frames, draw) for name, draw in how.items()]


def has_adapter(settings: EvalRun) -> bool:
  """Whether one of the models is a base with an adapter beside it."""
  return not {'init', 'rlaif'}.isdisjoint(settings.eval.models)


class _Asked:
  """Programs that ask a model, on a full batch of prompts."""

  def __init__(self, settings: LabelRun | EvalRun, mesh, rows: int, knob: str, lora):
    self.cfg, self.mesh, self.rows, self.lora = settings.model, mesh, rows, lora
    self.knob = (knob, rows)
    self.model = Vlm(settings.model, lora)
    llama = layouts.described_base(settings.model, mesh, 'llama', held=settings.quant)
    self.variables = {'params': llama}
    if lora:
      self.variables['lora'] = layouts.described_adapter(settings.model, lora, mesh)
    self.read = _weight_bytes(llama, mesh)

  def _prompts(self, text: int, frames: int) -> tuple[Any, int]:
    """Prompts as shapes, and how many positions each has."""
    visual = frames + self.cfg.vision.patches
    shown = _shape(self.cfg.dtype, self.rows, visual, self.cfg.llama.width)
    arrays = {
      'ids': _shape(jnp.int32, self.rows, text),
      'valid': _shape(jnp.bool_, self.rows, text),
      'visual': shown,
    }
    return layouts.rows(self.mesh, arrays), text + visual - 1

  def answers(
    self,
    name: str,
    text: int,
    frames: int,
    settings: decode.Sampling,
    copies: int = 1,
    times: int = 1,
  ) -> Phase:
    arrays, prompt = self._prompts(text, frames)
    program = inference.answer_program(self.model, settings, copies, self.mesh)  # type: ignore
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = sharding.described(key, sharding.replicated(self.mesh))
    numbers = layouts.rows(self.mesh, _shape(jnp.int32, self.rows))
    arguments = (self.variables, arrays, numbers, key)
    llama, limit, drawn = self.cfg.llama, settings.max_tokens, self.rows * copies
    cached = drawn / sharding.batch_shards(self.mesh) * (prompt + limit / 2)
    cached *= flops.cache_bytes(llama) / self.mesh.shape['tensor']
    read = flops.forward(llama, self.lora, prompt, 1)
    written = flops.decode(llama, self.lora, prompt, limit)
    work = (
      Work('prefill', self.rows * read, self.read),
      Work('decode', drawn * written, limit * (self.read + cached)),
    )
    return Phase(
      name, program, arguments, arguments, work, times, trips=limit, knob=self.knob
    )

  def next_token(self, name: str, text: int, frames: int, times: int = 1) -> Phase:
    arrays, prompt = self._prompts(text, frames)
    program = inference.next_token_program(self.model, self.mesh)  # type: ignore
    arguments = (self.variables, arrays)
    done = self.rows * flops.forward(self.cfg.llama, self.lora, prompt, 1)
    work = (Work('prefill', done, self.read),)
    return Phase(name, program, arguments, arguments, work, times, knob=self.knob)


# ---------------------------------------------------------------- PPO


def ppo_trees(settings: PpoRun, mesh, actor: LoraConfig, critic: LoraConfig):
  """(bases, frozen, state, optimizer) of a PPO run as shapes that carry a layout."""
  adapter = layouts.described_adapter
  dtype = settings.optim.adapter_dtype
  optimizer = optim.make_optimizer(settings.optim)
  describe = lambda cfg, held: layouts.described_base(cfg, mesh, 'llama', held=held)
  base = describe(settings.model, settings.quant)
  shared = settings.one_base and settings.critic_quant == settings.quant
  networks = Bases(
    actor=base,
    critic=base if shared else describe(settings.critic, settings.critic_quant),
  )
  frozen = Frozen(
    reference=adapter(settings.model, actor, mesh),
    reward=adapter(settings.critic, critic, mesh),
    reward_head=layouts.described_head(settings.critic, mesh),
  )
  trainable = {
    'policy': adapter(settings.model, actor, mesh, dtype),
    'value': adapter(settings.critic, critic, mesh, dtype),
    'head': layouts.described_head(settings.critic, mesh),
  }
  return (
    networks,
    frozen,
    layouts.described_state(trainable, optimizer, mesh),
    optimizer,
  )


def _ppo(settings: PpoRun, mesh, actor: LoraConfig, critic: LoraConfig) -> list[Phase]:
  cfg = settings.ppo
  networks, frozen, state, optimizer = ppo_trees(settings, mesh, actor, critic)
  suffix = -(-len(pairs.reward_prompt(settings.scoring)) // LETTERS_A_TOKEN)
  algorithm = ppo.Algorithm(
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

  rows, visual, text = cfg.rollout_batch, _visual(settings), cfg.query_tokens
  prompts = Prompts(
    ids=_shape(jnp.int32, rows, text),
    valid=_shape(jnp.bool_, rows, text),
    actor=_shape(settings.model.dtype, rows, visual, settings.model.llama.width),
    critic=_shape(settings.critic.dtype, rows, visual, settings.critic.llama.width),
    number=_shape(jnp.int32, rows),
  )
  prompts = layouts.rows(mesh, prompts)
  put = lambda tree: sharding.described(tree, sharding.replicated(mesh))
  key = put(jax.eval_shape(lambda: jax.random.key(0)))
  rollout, scores, estimates = _results(
    algorithm, networks, frozen, state, prompts, mesh
  )
  gold = layouts.rows(mesh, _shape(jnp.float32, rows))
  held = (networks, frozen, state)

  work = _ppo_work(settings, mesh, networks, actor, critic, suffix)
  micro = ('config.ppo.micro_batch', cfg.micro_batch)
  return [
    *_encode(settings, settings.model, mesh, ''),
    *(
      [] if settings.one_base else _encode(settings, settings.critic, mesh, ' (critic)')
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
      (state, networks, rollout, scores, estimates, put(_shape(jnp.float32))),
      (held, rollout, scores, estimates),
      work['update'],
      knob=micro,
    ),
  ]


def _results(algorithm, networks, frozen, state, prompts, mesh):
  """Shapes of a rollout, its scores and its estimates."""
  rows, answer = prompts.ids.shape[0], algorithm.ppo.response_tokens
  by_row = lambda dtype, *shape: _shape(dtype, rows, *shape)
  rollout = Rollout(
    prompts=prompts,
    **layouts.rows(
      mesh,
      {
        'tokens': by_row(jnp.int32, answer),
        'mask': by_row(jnp.bool_, answer),
        'sampled': by_row(jnp.float32, answer),
        'stopped': by_row(jnp.bool_),
      },
    ),
    adapter=sharding.described(_shape(jnp.uint32), sharding.replicated(mesh)),
  )
  scores = jax.eval_shape(
    algorithm.evaluate, networks, state.trainable, frozen, rollout
  )
  estimates, _ = jax.eval_shape(
    algorithm.estimate, rollout, scores, by_row(jnp.float32), by_row(jnp.float32)
  )
  return rollout, layouts.rows(mesh, scores), layouts.rows(mesh, estimates)


def _ppo_work(settings: PpoRun, mesh, networks, actor, critic, suffix: int) -> dict:
  cfg, rows = settings.ppo, settings.ppo.rollout_batch
  small, large = settings.model.llama, settings.critic.llama
  prompt = cfg.query_tokens + _visual(settings) - 1
  answer, length = cfg.response_tokens, prompt + cfg.response_tokens
  read_actor = _weight_bytes(networks.actor, mesh)
  read_critic = _weight_bytes(networks.critic, mesh)
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
        answer * (rounds * read_actor + cached),
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
