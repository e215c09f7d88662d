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
from vlm_rlaif_jax.train import journal, loop, optim, pairwise, supervised
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement


def run(settings: RewardRun, workdir: str | pathlib.Path) -> dict:
  """Trains on the pairs of the label stage; leaves `lora` and `head`."""
  run = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, run.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model, settings.lora)
  features = run.features(model, tuned)

  # Pairs and the visual tokens of their videos
  train, held_out = _pairs(settings, run, tuned, features)
  steps = supervised.steps_of(train, settings.optim, [settings.seed])

  # What is trained: a fresh adapter and a scalar head
  adapter_key, head_key = jax.random.split(jax.random.key(settings.seed))
  dtype = settings.optim.adapter_dtype
  trainable = {
    'lora': adapters.init_adapter(settings.model, settings.lora, adapter_key, dtype),
    'head': heads.init_head(head_key, settings.model.llama.width),
  }
  optimizer = optim.make_optimizer(settings.optim)
  frozen, initial = supervised.place(settings, run, tuned, trainable, optimizer)
  rate = optim.learning_rate(settings.optim, len(steps))
  step, score = pairwise.programs(
    settings, model, optimizer, rate, run.mesh, initial, frozen
  )

  def metrics_of(state: TrainState, blind: bool = False) -> dict:
    return pairwise.pair_metrics(
      score, state.trainable, frozen, held_out, features, blind
    )

  def evaluate(state: TrainState) -> dict:
    return {'eval_accuracy': metrics_of(state)['accuracy']}

  def build(samples: list[PairSample]) -> Callable[[batches.Step], dict]:
    return functools.partial(pairwise.planned_pair_batch, samples, features)

  def prepare(state: TrainState, done: int) -> None:
    scoring = pairwise.scoring_steps(held_out, run.mesh)
    shapes = functools.partial(pairwise.pair_shapes, features)
    for program, before, planned in (
      (step, (state, frozen), steps[done:]),
      (score, (state.trainable, frozen), scoring),
    ):
      supervised.compile_ahead(program, before, planned, shapes, 'reward', settings.log)

  # Train
  checkpointer = Checkpointer(
    run.folder,
    settings.checkpoint,
    journal.identity(
      settings,
      tuned.fingerprint,
      total_steps=len(steps),
      **{journal.DATA: hosts.files_fingerprint([_pairs_file(settings, run)])},
    ),
  )
  state = loop.fit(
    lambda state, batch: step(state, frozen, batch),
    initial,
    lambda first: batches.prefetch(build(train), steps[first:]),
    len(steps),
    title='reward',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=evaluate,
    evaluate_every=settings.reward.eval_every,
    profiler=Profiler(settings.profile, run.folder, [step]),
    work=lambda batch: pairwise.step_flops(settings, batch),
    prepare=prepare,
  )
  checkpointer.close()

  # Accuracy on held-out pairs, with the video and without
  final, blind = metrics_of(state), metrics_of(state, blind=True)

  # Artifact and summary
  artifact = artifacts.Artifact(
    {
      'lora': sharding.to_host(state.trainable['lora']),
      'head': dataclasses.asdict(sharding.to_host(state.trainable['head'])),
    },
    {
      'stage': 'reward',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, run.artifact('sft', settings.inputs.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'scoring': dataclasses.asdict(settings.scoring),
      'template': prompts.TEMPLATE,
    },
  )
  return run.finish(
    artifact,
    {
      'pairs': len(train),
      'held_out': len(held_out),
      'steps': len(steps),
      'trainable': trees.size(state.trainable),
      'bases': {'model': placement.base_summary(frozen, settings.quant)},
      **final,
      'accuracy_without_video': blind['accuracy'],
    },
  )


def _pairs_file(settings: RewardRun, run: RunContext) -> pathlib.Path:
  """Returns the file of pairs: as named, or that of the stage label."""
  return pathlib.Path(settings.inputs.pairs or run.artifact('label', '') / 'pairs.json')


def _pairs(
  settings: RewardRun, run: RunContext, tuned: bases.Base, features: VisualFeatures
) -> tuple[list[PairSample], list[PairSample]]:
  """Returns training pairs, and pairs of held-out videos.

  Labeling leaves out the held-out videos of `data.train`, so among the others a second
  share is held out here.
  """

  def parse_checked(parse: Callable[[], Pair]) -> Pair:
    pair = parse()
    examples.check_clip(pair.example, run.data.frames)
    return pair

  read = [
    run.skipped.attempt(functools.partial(parse_checked, parse))
    for _, parse in examples.pairs(_pairs_file(settings, run))
  ]
  items = [pair for pair in read if pair is not None]
  bad = features.encode(
    [pair.example.video for pair in items if pair.example.video],
    'tokens',
    lambda items, total: loop.progress(
      items, total, 'reward: encoding videos', settings.log, 'video'
    ),
  )
  samples = pairs.encode_pairs(
    [pair for pair in items if readers.is_readable(pair.example, bad, run.skipped)],
    tuned.tokenizer,
    settings.scoring,
    run.data,
    run.skipped,
    settings.reward.filter_too_long,
  )
  splits = ('', 'pairs') if run.data.train else ('',)
  train, held_out = [], []
  for sample in samples:
    video = sample.pair.example.video
    aside = any(examples.is_held_out(video, run.data.holdout, s) for s in splits)
    (held_out if aside else train).append(sample)
  if not train or not held_out:
    raise examples.DataError(
      f'{_pairs_file(settings, run)}: {len(train)} pairs to train on and '
      f'{len(held_out)} held out (data.holdout={run.data.holdout} of the videos); '
      'both must be at least 1'
    )
  return train, held_out[: settings.reward.eval_pairs]
