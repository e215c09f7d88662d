"""Policy initialization: plain SFT of a fresh adapter on the tuned model.

Its result is the policy that PPO starts from, and the reference of PPO's KL penalty.
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
from vlm_rlaif_jax.train.sample_batches import SampleBatches
from vlm_rlaif_jax.weights import adapters, artifacts, bases


def run(settings: InitRun, workdir: str | pathlib.Path) -> dict:
  """Trains a fresh adapter; leaves `lora`."""
  run = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, run.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model, settings.lora)

  # Samples and the visual tokens of their videos
  features = run.features(model, tuned)

  held_out = False if run.data.train else None
  items = readers.read(run.data, 'init', run.skipped, held_out)
  samples = readers.tokenize_examples(items, tuned.tokenizer, run.data, run.skipped)
  bad = features.encode(
    [sample.example.video for sample in samples if sample.example.video],
    'tokens',
    loop.bar('init: encoding videos', settings.log, 'video'),
  )
  samples = [s for s in samples if readers.is_readable(s.example, bad, run.skipped)]
  if not samples:
    raise examples.DataError(f'{readers.locate(run.data, "init")}: no usable sample')
  steps = supervised.steps_of(samples, settings.optim, [settings.seed, 2])

  # What is trained: a fresh adapter
  key = jax.random.key(settings.seed)
  dtype = settings.optim.adapter_dtype
  trainable = {'lora': adapters.init_adapter(settings.model, settings.lora, key, dtype)}
  # Train
  state, base_summary = supervised.train(
    settings,
    run,
    model,
    tuned,
    trainable,
    optim.make_optimizer(settings.optim),
    steps,
    SampleBatches(samples, features, 'tokens'),
  )
  # Artifact and summary
  artifact = artifacts.Artifact(
    sharding.to_host(state.trainable),
    {
      'stage': 'init',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, run.artifact('sft', settings.inputs.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'template': prompts.TEMPLATE,
    },
  )
  return run.finish(
    artifact,
    {
      'samples': len(samples),
      'steps': len(steps),
      'trainable': trees.size(state.trainable),
      'bases': base_summary,
    },
  )
