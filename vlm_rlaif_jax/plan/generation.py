"""Phases that generate and judge."""

from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference import generation, sampler
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import EOS, Phase, shape_of, weight_bytes
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.stages import eval as evaluation
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops


def label_phases(settings: LabelRun, mesh) -> list[Phase]:
  """Two answers a question, captions of clips, and the judge's longest prompt.

  Questions and captions are of the shortest bucket, judgments of the longest. By
  claims, one statement a question is counted: how many there are, the answers decide.
  """
  data, said = settings.data, settings.label
  clips = narrative.clip_windows(data.frames, said.clip_frames)
  clip = clips[0][1] - clips[0][0]
  twice = 2 if said.judge == 'options' and said.both_orders else 1
  asked = _GenerationPhases(settings, mesh, said.batch, 'config.label.batch', None)
  short, long = data.buckets[0], data.buckets[-1]
  draw, tell = (
    narrative.answer_sampling(said, EOS),
    narrative.caption_sampling(said, EOS),
  )
  return [
    asked.answers('answer', short, data.frames, draw, copies=2),
    asked.answers('caption', short, clip, tell, times=len(clips)),
    asked.next_token('judge', long, data.frames, times=twice),
  ]


def eval_phases(settings: EvalRun, mesh, lora: LoraConfig) -> list[Phase]:
  """Answers and descriptions of the model with the most beside its base."""
  beside = lora if has_adapter(settings) else None
  asked = _GenerationPhases(
    settings, mesh, settings.eval.batch, 'config.eval.batch', beside
  )
  short, frames = settings.data.buckets[0], settings.data.frames
  how = {
    name: evaluation.sampling(settings.eval, name, EOS) for name in ('qa', 'describe')
  }
  return [asked.answers(name, short, frames, draw) for name, draw in how.items()]


def has_adapter(settings: EvalRun) -> bool:
  """Whether one of the models is a base with an adapter beside it."""
  return not {'init', 'rlaif'}.isdisjoint(settings.eval.models)


class _GenerationPhases:
  """Programs that ask a model, on a full batch of prompts."""

  def __init__(self, settings: LabelRun | EvalRun, mesh, rows: int, knob: str, lora):
    self.cfg, self.mesh, self.rows, self.lora = settings.model, mesh, rows, lora
    self.knob = (knob, rows)
    self.model = Vlm(settings.model, lora)
    llama = shardings.abstract_base(settings.model, mesh, 'llama', held=settings.quant)
    self.variables = {'params': llama}
    if lora:
      self.variables['lora'] = shardings.abstract_adapter(settings.model, lora, mesh)
    self.read = weight_bytes(llama, mesh)

  def _prompts(self, text: int, frames: int) -> tuple[Any, int]:
    """Prompts as shapes, and how many positions each has."""
    visual = frames + self.cfg.vision.patches
    shown = shape_of(self.cfg.dtype, self.rows, visual, self.cfg.llama.width)
    arrays = {
      'ids': shape_of(jnp.int32, self.rows, text),
      'valid': shape_of(jnp.bool_, self.rows, text),
      'visual': shown,
    }
    return shardings.rows(self.mesh, arrays), text + visual - 1

  def answers(
    self,
    name: str,
    text: int,
    frames: int,
    settings: sampler.Sampling,
    copies: int = 1,
    times: int = 1,
  ) -> Phase:
    arrays, prompt = self._prompts(text, frames)
    program = generation.answer_program(self.model, settings, copies, self.mesh)  # type: ignore
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = sharding.abstract(key, sharding.replicated(self.mesh))
    numbers = shardings.rows(self.mesh, shape_of(jnp.int32, self.rows))
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
    program = generation.next_token_program(self.model, self.mesh)  # type: ignore
    arguments = (self.variables, arrays)
    done = self.rows * flops.forward(self.cfg.llama, self.lora, prompt, 1)
    work = (Work('prefill', done, self.read),)
    return Phase(name, program, arguments, arguments, work, times, knob=self.knob)
