"""Supervised fine-tuning: LoRA and the projector, short answers first, then long ones.

The tower is frozen, so its patch features are computed once; the projector trains, so
pooling happens inside the step.
"""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import batches, examples, prompts, readers
from vlm_rlaif_jax.data.readers import Sample
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import loop, optim, supervised
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.sample_batches import SampleBatches
from vlm_rlaif_jax.weights import adapters, artifacts, bases


def run(settings: SftRun, workdir: str | pathlib.Path) -> dict:
  """Tunes the base; leaves `lora` and `projector`."""
  run = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  model = Vlm(settings.model, settings.lora)

  # Samples and the patch features of their videos
  features = run.features(model, base)
  parts = _parts(settings, run, base, features)
  samples = [sample for part in parts.values() for sample in part]
  steps = curriculum(settings, parts)

  # What is trained: a fresh adapter, and the projector
  key = jax.random.key(settings.seed)
  trainable = {
    'lora': adapters.init_adapter(
      settings.model, settings.lora, key, settings.optim.adapter_dtype
    ),
    'projector': jax.tree.map(
      lambda x: jax.numpy.asarray(x, jax.numpy.float32), base.params['projector']
    ),
  }
  scale = settings.projector_lr / settings.optim.learning_rate
  optimizer = optim.make_optimizer(
    settings.optim, {'projector': scale} if settings.projector_lr else None
  )
  # Train
  state, base_summary = supervised.train(
    settings,
    run,
    model,
    base,
    trainable,
    optimizer,
    steps,
    SampleBatches(samples, features, 'patches'),
  )
  # Artifact and summary
  artifact = artifacts.Artifact(
    sharding.to_host(state.trainable),
    {
      'stage': 'sft',
      'base': base.fingerprint,
      **bases.origin(settings.base),
      'lora': dataclasses.asdict(settings.lora),
      'template': prompts.TEMPLATE,
    },
  )
  return run.finish(
    artifact,
    {
      'samples': {name: len(part) for name, part in parts.items()},
      'order': settings.sft.order,
      'curriculum': stages_of(settings, parts, steps),
      'steps': len(steps),
      'trainable': trees.size(state.trainable),
      'bases': base_summary,
    },
  )


def _parts(
  settings: SftRun, run: RunContext, base: bases.Base, features: VisualFeatures
) -> dict[str, list[Sample]]:
  """Returns the readable samples of each part of the curriculum, tokenized.

  One file of both kinds is split by the length of the longest answer.
  """
  data, names = run.data, settings.sft.stages
  if data.train:
    items = readers.read(data, 'short', run.skipped, held_out=False)
    limit = settings.sft.short_words
    is_short = [readers.answer_words(item) <= limit for item in items]
    read = {
      name: [item for item, s in zip(items, is_short, strict=True) if s == short]
      for name, short in (('short', True), ('long', False))
      if name in names
    }
  else:
    read = {name: readers.read(data, name, run.skipped) for name in names}
  # Texts before videos: a row that is too long is refused before hours of encoding
  samples = {
    name: readers.tokenize_examples(items, base.tokenizer, data, run.skipped)
    for name, items in read.items()
  }
  bad = features.encode(
    [s.example.video for part in samples.values() for s in part if s.example.video],
    'patches',
    loop.bar('sft: encoding videos', settings.log, 'video'),
  )
  parts = {
    name: [s for s in part if readers.is_readable(s.example, bad, run.skipped)]
    for name, part in samples.items()
  }
  if not any(parts.values()):
    raise examples.DataError(f'{readers.locate(data, names[0])}: no usable sample')
  return parts


def curriculum(settings: SftRun, parts: dict[str, list[Sample]]) -> list[batches.Step]:
  """Returns all batches in their order; indices run through all parts in turn."""
  offsets, total = {}, 0
  for name, part in parts.items():
    offsets[name], total = total, total + len(part)
  if settings.sft.order == 'mixed':
    samples = [sample for part in parts.values() for sample in part]
    return supervised.steps_of(samples, settings.optim, [settings.seed, 0])
  names = ['short', 'long'] if settings.sft.order == 'short_long' else ['long', 'short']
  steps = []
  for number, name in enumerate(name for name in names if name in parts):
    part = supervised.steps_of(parts[name], settings.optim, [settings.seed, number])
    steps += [
      dataclasses.replace(
        step,
        indices=np.where(
          step.indices == batches.BLANK, batches.BLANK, step.indices + offsets[name]
        ),
      )
      for step in part
    ]
  return steps


def stages_of(
  settings: SftRun, parts: dict[str, list[Sample]], steps: list[batches.Step]
) -> list[tuple[str, int]]:
  """Returns the stages of a curriculum in their order, each with its steps."""
  if settings.sft.order == 'mixed':
    return [('mixed', len(steps))]
  ends = np.cumsum([len(part) for part in parts.values()])
  names = [
    list(parts)[int(np.searchsorted(ends, step.indices.max(), side='right'))]
    for step in steps
  ]
  return [(name, len(list(group))) for name, group in itertools.groupby(names)]
