"""Policy initialisation: plain SFT of a fresh adapter on the tuned model.

Its result is both the policy that PPO starts from and the reference that PPO is held
to.
"""

import dataclasses
import pathlib

import jax

from vlm_rlaif_jax.config.stages import InitRun
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import examples, prompts, sources
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.train import artefacts, bases, loop, optim, supervised
from vlm_rlaif_jax.train.workspace import Workspace


def run(settings: InitRun, workdir: str | pathlib.Path) -> dict:
  """Trains a fresh adapter; leaves `lora`."""
  space = Workspace(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artefact('sft', settings.sft), settings.model)
  model = Vlm(settings.model, settings.lora)
  seen = space.seen(model, tuned)

  held_out = False if space.data.train else None
  items = sources.read(space.data, 'init', space.skipped, held_out)
  bad = seen.encode(
    [item.video for item in items if item.video],
    'tokens',
    lambda items, total: loop.progress(
      items, total, 'init: see', settings.log, 'video'
    ),
  )
  items = sources.drop_unreadable(items, bad, space.skipped)
  samples = sources.tokenise(items, tuned.tokenizer, space.data, space.skipped)
  if not samples:
    raise examples.DataError(f'{sources.locate(space.data, "init")}: no usable sample')
  steps = supervised.steps_of(samples, settings.optim, [settings.seed, 2])

  key = jax.random.key(settings.seed)
  dtype = settings.optim.adapter_dtype
  trainable = {'lora': bases.init_adapter(settings.model, settings.lora, key, dtype)}
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
  artefact = artefacts.Artefact(
    sharding.to_host(state.trainable),
    {
      'stage': 'init',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, space.artefact('sft', settings.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'template': prompts.TEMPLATE,
    },
  )
  artefacts.save(space.folder / 'artefact', artefact)
  summary = {
    'stage': 'init',
    'lineage': settings.lineage,
    'samples': len(samples),
    'skipped': space.skipped.reasons,
    'steps': len(steps),
    'trainable': trees.size(state.trainable),
    'bases': held,
    'artefact': str(space.folder / 'artefact'),
    'fingerprint': artefact.fingerprint,
  }
  artefacts.write_summary(space.folder, summary)
  return summary
