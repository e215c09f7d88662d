"""Phases that generate and judge."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches
from vlm_rlaif_jax.evals import predictions
from vlm_rlaif_jax.evals.benchmarks import registry
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.inference import generation, sampler
from vlm_rlaif_jax.labeling import answers, narrative, pairs
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan import reward_scoring
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.encoding import (
  encoding_phases,
  text_phase,
  videos_at_once,
)
from vlm_rlaif_jax.plan.phase import (
  EOS,
  Phase,
  copies,
  filled_share,
  shape_of,
  weight_bytes,
)
from vlm_rlaif_jax.plan.phases import Loras
from vlm_rlaif_jax.settings.eval import BENCHMARKS, OWN, WORLD_TASKS, EvalRun
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops


def label_phases(settings: LabelRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases that answer, caption clips, and judge the longest prompt.

  Questions and captions are of the shortest bucket, judgments of the longest. By
  options, every pair of answers is judged, in one or both orders. By claims, one
  statement a question is counted: how many there are, the answers decide.
  """
  data, label = settings.data, settings.label
  clips = narrative.clip_windows(data.frames, label.clip_frames)
  clip = clips[0][1] - clips[0][0]
  judgments = 1
  if label.judge == 'options':
    judgments = len(pairs.pairs_of(label.answers)) * (2 if label.both_orders else 1)
  batch = GenerationPhases(settings, mesh, label.batch, 'config.label.batch', None)
  short, long = data.buckets[0], data.buckets[-1]
  answering = answers.answer_sampling(label, EOS)
  captioning = narrative.caption_sampling(label, EOS)
  return [
    *encoding_phases(settings, settings.model, mesh),
    batch.answers('answer', short, data.frames, answering, repeats=label.answers),
    batch.answers('caption', short, clip, captioning, times=len(clips)),
    batch.next_token('judge', long, data.frames, times=judgments),
  ]


def label_resident(settings: LabelRun, mesh: Mesh, loras: Loras) -> Any:
  """Returns the shapes of the decoder."""
  return shardings.abstract_base(settings.model, mesh, 'llama', quant=settings.quant)


def eval_resident(settings: EvalRun, mesh: Mesh, loras: Loras) -> Any:
  """Returns the shapes of the decoder, and of an adapter where a model has one.

  Or those of the reward model, which has the devices to itself, where it is larger.
  """
  cfg, reward = settings.model, reward_scoring.find(settings)
  policy: Any = [shardings.abstract_base(cfg, mesh, 'llama', quant=settings.quant)]
  if has_adapter(settings):
    policy.append(shardings.abstract_adapter(cfg, loras[0], mesh))
  if reward is None:
    return policy
  scorer = reward_scoring.variables(settings, reward, mesh)
  return max(policy, scorer, key=sharding.bytes_per_device)


def eval_phases(settings: EvalRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases that answer and describe, with an adapter if a model has one.

  A batch of each task; or, for a data set of one's own, one model on the published test
  sets of the benchmarks: those that were chosen, or all. Programs are shared by the
  benchmarks whose longest answers are the same. For a file of one's own it is a batch
  of each task, which a reward model scores where one is named.
  """
  lora = loras[0] if has_adapter(settings) else None
  batch = GenerationPhases(
    settings, mesh, settings.eval.batch, 'config.eval.batch', lora
  )
  frames, short = settings.data.frames, settings.data.buckets[0]
  encoding = encoding_phases(settings, settings.model, mesh, resident=batch.variables)
  published = BENCHMARKS if settings.data.root and not settings.data.train else ()
  names = settings.eval.benchmarks or published
  chosen = [registry.named(name) for name in names if name in BENCHMARKS]

  def draw(limit: int) -> sampler.Sampling:
    return sampler.Sampling(limit, settings.eval.temperature, eos=EOS)

  suffix = ' (own)' if chosen else ''
  tasks = [
    batch.answers(f'{name}{suffix}', short, frames, draw(limit))
    for name in WORLD_TASKS
    if not chosen or name in names or OWN in names
    for limit in [predictions.longest(settings.eval, name)]
  ]
  if reward := reward_scoring.find(settings):
    tasks += reward_scoring.reward_phases(settings, reward, mesh)
  if not chosen:
    return [*encoding, *tasks]
  videos = sum(
    one.items if one.videos is None else one.videos
    for one in (benchmark.test_set for benchmark in chosen)
  )
  size = videos_at_once(mesh)
  phases = [
    dataclasses.replace(phase, times=math.ceil(videos / size)) for phase in encoding
  ]
  for field in dict.fromkeys(one.tokens for one in chosen):
    group = [one for one in chosen if one.tokens == field]
    times = batch.count(group)
    limit = draw(getattr(settings.eval, field))
    name = field.removesuffix('_tokens')
    phase = batch.answers(name, short, frames, limit, times=times)
    phases.append(dataclasses.replace(phase, note=_sizes(name, group)))
  if texts := sum(one.test_set.texts for one in chosen):
    phases.append(text_phase(settings, mesh, texts))
  choices = [one for one in chosen if one.family == 'choice']
  if choices:
    longer = settings.data.buckets[:2][-1]  # options make a prompt longer
    times = batch.count(choices)
    phase = batch.next_token('options', longer, frames, times=times)
    phases.append(dataclasses.replace(phase, note=_sizes('options', choices)))
  return phases + tasks


def _sizes(phase: str, group: Sequence[Benchmark]) -> str:
  """Returns the prompts of the published test sets that a phase is for.

  Numbers that no place states are marked; `evals/benchmarks/sizes.py` has places.
  """
  sizes = ', '.join(
    f'{one.name} {one.test_set.items * one.prompts:,}'
    + (' (unverified)' if 'items' in one.test_set.unverified else '')
    for one in group
  )
  return f'{phase}: prompts of one model: {sizes}'


def has_adapter(settings: EvalRun) -> bool:
  """Returns whether one of the models is a base with an adapter."""
  return not {'init', 'rlaif'}.isdisjoint(settings.eval.models)


class GenerationPhases:
  """Phases that run one model on a full batch of prompts.

  Args:
    lora: of its adapter; None: it has none.
    params: shapes of the decoder, where it is on the devices for others, too.
    resident: shapes of what else is on the devices meanwhile.
  """

  def __init__(
    self,
    settings: LabelRun | EvalRun | PpoRun,
    mesh: Mesh,
    rows: int,
    tuning_flag: str,
    lora: LoraConfig | None,
    params: Any = None,
    resident: Any = (),
  ):
    self.cfg, self.mesh, self.rows, self.lora = settings.model, mesh, rows, lora
    self.tuning_flag = (tuning_flag, rows)
    self.model = Vlm(settings.model, lora)
    llama = params or shardings.abstract_base(
      settings.model, mesh, 'llama', quant=settings.quant
    )
    self.variables, self.resident = {'params': llama}, resident
    if lora:
      self.variables['lora'] = shardings.abstract_adapter(settings.model, lora, mesh)
    self.read = weight_bytes(llama, mesh)

  def count(self, group: Sequence[Benchmark]) -> int:
    """Returns the batches of the published test sets."""
    return math.ceil(sum(one.test_set.items * one.prompts for one in group) / self.rows)

  def _prompts(self, text: int, frames: int) -> tuple[Any, int]:
    """Returns prompts as shapes, and the positions of each."""
    visual = frames + self.cfg.vision.patches
    tokens = shape_of(self.cfg.dtype, self.rows, visual, self.cfg.llama.width)
    arrays = {
      'ids': shape_of(jnp.int32, self.rows, text),
      'valid': shape_of(jnp.bool_, self.rows, text),
      'visual': tokens,
    }
    return shardings.rows(self.mesh, arrays), text + visual - 1

  def answers(
    self,
    name: str,
    text: int,
    frames: int,
    settings: sampler.Sampling,
    repeats: int = 1,
    times: int = 1,
  ) -> Phase:
    arrays, prompt = self._prompts(text, frames)
    program = generation.answer_program(self.model, settings, repeats, self.mesh)  # type: ignore
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = sharding.abstract(key, sharding.replicated(self.mesh))
    numbers = shardings.rows(self.mesh, shape_of(jnp.int32, self.rows))
    arguments = (self.variables, arrays, numbers, key)
    llama, limit, answers = self.cfg.llama, settings.max_tokens, self.rows * repeats
    cached = answers / sharding.batch_shards(self.mesh) * (prompt + limit / 2)
    each = flops.cache_bytes(llama, itemsize=jnp.dtype(self.cfg.dtype).itemsize)
    cached *= each / self.mesh.shape['tensor']
    read = flops.forward(llama, self.lora, prompt, 1)
    written = flops.decode(llama, self.lora, prompt, limit)
    work = (
      Work('prefill', self.rows * read, self.read),
      Work('decode', answers * written, limit * (self.read + cached)),
    )
    return Phase(
      name,
      program,
      arguments,
      (arguments, copies(arrays, batches.PREFETCHED), self.resident),
      work,
      times,
      loop_iterations=limit,
      tuning_flag=self.tuning_flag,
      filled=filled_share(prompt, limit),
    )

  def next_token(self, name: str, text: int, frames: int, times: int = 1) -> Phase:
    arrays, prompt = self._prompts(text, frames)
    program = generation.next_token_program(self.model, self.mesh)  # type: ignore
    arguments = (self.variables, arrays)
    done = self.rows * flops.forward(self.cfg.llama, self.lora, prompt, 1)
    work = (Work('prefill', done, self.read),)
    return Phase(
      name,
      program,
      arguments,
      (arguments, copies(arrays, batches.PREFETCHED), self.resident),
      work,
      times,
      tuning_flag=self.tuning_flag,
    )
