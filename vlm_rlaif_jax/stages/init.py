"""Policy initialization: plain SFT of a fresh adapter on the tuned model.

Its result is both the policy that PPO starts from and the reference that PPO is held
to.
"""

import dataclasses
import pathlib

import jax

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import examples, prompts, readers
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.train import loop, optim, supervised
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import adapters, artifacts, bases


def run(settings: InitRun, workdir: str | pathlib.Path) -> dict:
  """Trains a fresh adapter; leaves `lora`."""
  space = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model, settings.lora)
  seen = space.seen(model, tuned)

  held_out = False if space.data.train else None
  items = readers.read(space.data, 'init', space.skipped, held_out)
  bad = seen.encode(
    [item.video for item in items if item.video],
    'tokens',
    lambda items, total: loop.progress(
      items, total, 'init: see', settings.log, 'video'
    ),
  )
  items = readers.drop_unreadable(items, bad, space.skipped)
  samples = readers.tokenize_examples(items, tuned.tokenizer, space.data, space.skipped)
  if not samples:
    raise examples.DataError(f'{readers.locate(space.data, "init")}: no usable sample')
  steps = supervised.steps_of(samples, settings.optim, [settings.seed, 2])

  key = jax.random.key(settings.seed)
  dtype = settings.optim.adapter_dtype
  trainable = {'lora': adapters.init_adapter(settings.model, settings.lora, key, dtype)}
  state, held = supervised.train(
    settings,
    space,
    model,
    tuned,
    trainable,
    optim.make_optimizer(settings.optim),
    steps,
    supervised.batch_builder(samples, seen, 'tokens'),
  )
  artifact = artifacts.Artifact(
    sharding.to_host(state.trainable),
    {
      'stage': 'init',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, space.artifact('sft', settings.inputs.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'template': prompts.TEMPLATE,
    },
  )
  artifacts.save(space.folder / 'artifact', artifact)
  summary = {
    'stage': 'init',
    'lineage': settings.lineage,
    'samples': len(samples),
    'skipped': space.skipped.reasons,
    'steps': len(steps),
    'trainable': trees.size(state.trainable),
    'bases': held,
    'artifact': str(space.folder / 'artifact'),
    'fingerprint': artifact.fingerprint,
  }
  artifacts.write_summary(space.folder, summary)
  return summary
