"""The reward model: the tuned network with an adapter and a scalar head, from pairs.

A score is read from the last position of a left-padded sequence: question, answer,
</s>, reward prompt. Both answers of a pair share their visual tokens.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax

from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.data import batches, examples, pairs, prompts, readers
from vlm_rlaif_jax.data.examples import Pair
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.train import journal, loop, optim, supervised
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.pairwise import (
  pair_metrics,
  planned_pair_batch,
  programs,
  scoring_steps,
  step_flops,
)
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement


def run(settings: RewardRun, workdir: str | pathlib.Path) -> dict:
  """Trains on the pairs of the label stage; leaves `lora` and `head`."""
  space = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model, settings.lora)
  seen = space.seen(model, tuned)

  train, held_out = _pairs(settings, space, tuned, seen)
  steps = supervised.steps_of(train, settings.optim, [settings.seed])

  adapter_key, head_key = jax.random.split(jax.random.key(settings.seed))
  dtype = settings.optim.adapter_dtype
  trainable = {
    'lora': adapters.init_adapter(settings.model, settings.lora, adapter_key, dtype),
    'head': heads.init_head(head_key, settings.model.llama.width),
  }
  optimizer = optim.make_optimizer(settings.optim)
  frozen, initial = supervised.place(settings, space, tuned, trainable, optimizer)
  rate = optim.learning_rate(settings.optim, len(steps))
  step, judge = programs(settings, model, optimizer, rate, space.mesh, initial, frozen)

  def evaluate(state) -> dict:
    return {
      'eval_accuracy': pair_metrics(judge, state.trainable, frozen, held_out, seen)[
        'accuracy'
      ]
    }

  def build(samples: list[PairSample]):
    return functools.partial(planned_pair_batch, samples, seen)

  def prepare(state, done: int) -> None:
    for program, before, planned, samples in (
      (step, (state, frozen), steps[done:], train),
      (judge, (state.trainable, frozen), scoring_steps(held_out, space.mesh), held_out),
    ):
      supervised.compile_ahead(
        program, before, planned, build(samples), 'reward', settings.log
      )

  checkpointer = Checkpointer(
    space.folder,
    settings.checkpoint,
    journal.identity(
      settings,
      tuned.fingerprint,
      total_steps=len(steps),
      **{journal.DATA: hosts.files_fingerprint([_pairs_file(settings, space)])},
    ),
  )
  state = loop.fit(
    lambda state, batch: step(state, frozen, batch),
    initial,
    lambda first: batches.prefetch(build(train), steps[first:]),
    len(steps),
    title='reward',
    folder=space.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=evaluate,
    evaluate_every=settings.reward.eval_every,
    profiler=Profiler(settings.profile, space.folder, [step]),
    work=lambda batch: step_flops(settings, batch),
    prepare=prepare,
  )
  checkpointer.close()

  final = pair_metrics(judge, state.trainable, frozen, held_out, seen)
  blind = pair_metrics(judge, state.trainable, frozen, held_out, seen, blind=True)
  artifact = artifacts.Artifact(
    {
      'lora': sharding.to_host(state.trainable['lora']),
      'head': dataclasses.asdict(sharding.to_host(state.trainable['head'])),
    },
    {
      'stage': 'reward',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, space.artifact('sft', settings.inputs.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'scoring': dataclasses.asdict(settings.scoring),
      'template': prompts.TEMPLATE,
    },
  )
  artifacts.save(space.folder / 'artifact', artifact)
  summary = {
    'stage': 'reward',
    'lineage': settings.lineage,
    'pairs': len(train),
    'held_out': len(held_out),
    'skipped': space.skipped.reasons,
    'steps': len(steps),
    'trainable': trees.size(state.trainable),
    'bases': {'model': placement.base_summary(frozen, settings.quant)},
    **final,
    'accuracy_without_video': blind['accuracy'],
    'artifact': str(space.folder / 'artifact'),
    'fingerprint': artifact.fingerprint,
  }
  artifacts.write_summary(space.folder, summary)
  return summary


def _pairs_file(settings: RewardRun, space: RunContext) -> pathlib.Path:
  return pathlib.Path(settings.inputs.pairs or space.artifact('label', '') / 'pairs.json')


def _pairs(
  settings: RewardRun, space: RunContext, tuned: bases.Base, seen: VisualFeatures
) -> tuple[list[PairSample], list[PairSample]]:
  """Training pairs, and those of held-out videos.

  Labeling leaves out the held-out videos of `data.train`, so among the others a second
  share is held out here.
  """

  def checked(parse: Callable[[], Pair]) -> Pair:
    pair = parse()
    examples.check_clip(pair.example, space.data.frames)
    return pair

  read = [
    space.skipped.attempt(lambda parse=parse: checked(parse))
    for _, parse in examples.pairs(_pairs_file(settings, space))
  ]
  known = [pair for pair in read if pair is not None]
  bad = seen.encode(
    [pair.example.video for pair in known if pair.example.video],
    'tokens',
    lambda items, total: loop.progress(
      items, total, 'reward: see', settings.log, 'video'
    ),
  )
  readable = {
    id(item)
    for item in readers.drop_unreadable(
      [pair.example for pair in known], bad, space.skipped
    )
  }
  samples = pairs.encode_pairs(
    [pair for pair in known if id(pair.example) in readable],
    tuned.tokenizer,
    settings.scoring,
    space.data,
    space.skipped,
    settings.reward.filter_too_long,
  )
  splits = ('', 'pairs') if space.data.train else ('',)
  train, held_out = [], []
  for sample in samples:
    video = sample.pair.example.video
    aside = any(examples.is_held_out(video, space.data.holdout, s) for s in splits)
    (held_out if aside else train).append(sample)
  if not train or not held_out:
    raise examples.DataError(
      f'{_pairs_file(settings, space)}: {len(train)} pairs to train on and '
      f'{len(held_out)} held out (data.holdout={space.data.holdout} of the videos); '
      'both must be at least 1'
    )
  return train, held_out[: settings.reward.eval_pairs]
