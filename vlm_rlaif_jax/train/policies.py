"""Loads one of the checkpoints base, sft, init and rlaif, ready to generate."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.train import console, loop, shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement


@dataclasses.dataclass(frozen=True)
class Policy:
  """A checkpoint on the devices.

  Attributes:
    weights: fingerprints of its parts.
    bad: why videos cannot be read.
  """

  generator: Generator
  weights: dict[str, str]
  bad: dict[Video, str]


def load_base(settings: EvalRun, run: RunContext, name: str) -> bases.Base:
  """Returns the base of one of base, sft, init, rlaif; tuned where the model is."""
  base = bases.load(settings.base, settings.model)
  if name == 'base':
    return base
  return bases.tuned(base, run.artifact('sft', settings.inputs.sft), settings.model)


def load(
  settings: EvalRun,
  run: RunContext,
  name: str,
  base: bases.Base,
  videos: Sequence[Video],
  meter: flops.Meter,
  profiler: Profiler,
) -> Policy:
  """Returns one of base, sft, init, rlaif, with the visual tokens of videos.

  Args:
    base: of `load_base`.
    meter: counts what is generated.
  """
  # The decoder of the base goes on the devices.
  variables: dict[str, Any] = {
    'params': placement.on_device(
      {'llama': base.params['llama']}, settings.model, run.mesh, quant=settings.quant
    )
  }
  weights = {'base': base.fingerprint}

  # The adapter of a later stage.
  lora: LoraConfig | None = None
  if name in ('init', 'rlaif'):
    stage = {'init': 'init', 'rlaif': 'ppo'}[name]
    folder = run.artifact(stage, getattr(settings.inputs, stage))
    adapter = artifacts.load(folder, stage, base.fingerprint)
    weights['adapter'] = adapter.fingerprint
    lora = adapters.lora_of(adapter)
    layout = shardings.adapter(settings.model, lora, run.mesh)
    variables['lora'] = sharding.put(adapter.parts['lora'], layout)
  console.write_sharding_table(run.folder / f'layout_{name}.txt', {name: variables})

  # Visual tokens: the projector is that of the base or of SFT.
  model = Vlm(settings.model, lora)
  features = run.features(model, base)
  bad = features.encode(
    videos, 'tokens', _progress(settings, name, 'encoding videos', 'video')
  )
  generator = Generator(
    model,
    variables,
    base.tokenizer,
    features,
    run.data.buckets,
    settings.eval.batch,
    _progress(settings, name, 'answering', 'batch'),
    functools.partial(meter.add_generation, settings.model.llama, lora),
    profiler.batch,
  )
  return Policy(generator, weights, bad)


def _progress(
  settings: EvalRun, name: str, title: str, unit: str
) -> Callable[[Iterable, int], Any]:
  """Returns what wraps a sequence of known length in a progress bar."""
  return lambda items, total: loop.progress(
    items, total, f'eval {name}: {title}', settings.log, unit
  )
