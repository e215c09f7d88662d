"""The reward model: the tuned network with an adapter and a scalar head, from pairs.

A score is read from the last position of a left-padded sequence: question, answer,
</s>, reward prompt. Both answers of a pair share their visual tokens. The adapter
starts as no change of the tuned model, so with `head_start=judge` the first scores are
the judgments of that model, and training improves on what it already sees.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.data import batches, examples, holdout, pairs, prompts, readers
from vlm_rlaif_jax.data.examples import Pair
from vlm_rlaif_jax.data.holdout import Holdout
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.train import (
  journal,
  labeler,
  loop,
  optim,
  pair_choice,
  pair_controls,
  pairwise,
  supervised,
)
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.held_out_pairs import HeldOutPairs
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement


def run(settings: RewardRun, workdir: str | pathlib.Path) -> dict:
  """Trains on the pairs of the label stage; leaves `lora` and `head`."""
  run = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  sft = run.artifact('sft', settings.inputs.sft)
  tuned = bases.tuned(base, sft, settings.model)
  if not settings.inputs.pairs:
    labeler.say_other_labeler(run.artifact('label', ''), sft, tuned)
  model = Vlm(settings.model, settings.lora)
  features = run.features(model, tuned)

  # Pairs and the visual tokens of their videos
  train, held_out = _pairs(settings, run, tuned, features)
  truth = Truth.load(readers.locate(dataclasses.replace(run.data, train=''), 'truth'))
  train = _chosen(settings, run, tuned, train, truth)
  steps = supervised.steps_of(train, settings.optim, [settings.seed])

  # What is trained: a fresh adapter and a scalar head
  adapter_key, head_key = jax.random.split(jax.random.key(settings.seed))
  dtype = settings.optim.adapter_dtype
  trainable = {
    'lora': adapters.init_adapter(settings.model, settings.lora, adapter_key, dtype),
    'head': initial_head(settings, tuned, head_key),
  }
  optimizer = optim.make_optimizer(settings.optim)
  frozen, initial = supervised.place(settings, run, tuned, trainable, optimizer)
  rate = optim.learning_rate(settings.optim, len(steps))
  optim.report_warmup(settings.optim, len(steps))
  step, score = pairwise.programs(
    settings, model, optimizer, rate, run.mesh, initial, frozen
  )
  unnarrated = _without_narrative(settings, run, tuned, held_out)
  evaluation = HeldOutPairs(held_out, features, score, frozen, unnarrated)

  # Train, evaluate, artifact and summary
  pairs_fingerprint = hosts.files_fingerprint([_pairs_file(settings, run)])
  identity = journal.identity(
    settings,
    tuned.fingerprint,
    total_steps=len(steps),
    **{journal.DATA: pairs_fingerprint},
    **journal.videos(settings, features.contents),
    **_truth_identity(settings, run),
  )
  state = _train(settings, run, train, steps, step, initial, evaluation, identity)
  artifacts.drop_summary(run.folder)
  report = evaluation.write(run.folder, state, truth)
  return run.finish(
    _artifact(settings, run, tuned, state, pairs_fingerprint),
    {
      'pairs': len(train),
      'held_out': len(held_out),
      'steps': len(steps),
      'trainable': trees.size(state.trainable),
      'bases': {'model': placement.base_summary(frozen, settings.quant)},
      'head_start': settings.reward.head_start,
      'labels': settings.reward.labels,
      'blind': settings.reward.blind,
      **report,
    },
  )


def _chosen(
  settings: RewardRun,
  run: RunContext,
  tuned: bases.Base,
  train: list[PairSample],
  truth: Truth | None,
) -> list[PairSample]:
  """Returns the pairs that the settings train on, of all that there are to train on."""
  encode = functools.partial(
    pairs.encode_pairs,
    tokenizer=tuned.tokenizer,
    settings=settings.scoring,
    data=run.data,
    skipped=run.skipped,
    drop_long=True,
    cut_answers=settings.reward.cut_answers,
  )
  return pair_choice.choose(train, settings.reward, settings.seed, truth, encode)


def _truth_identity(settings: RewardRun, run: RunContext) -> dict[str, str]:
  """Returns the fingerprint of the truth where it decides what is learned."""
  if not settings.data.root or settings.reward.labels != 'truth':
    return {}
  path = readers.locate(dataclasses.replace(run.data, train=''), 'truth')
  return {journal.TRUTH: hosts.files_fingerprint([path])}


def _without_narrative(
  settings: RewardRun, run: RunContext, tuned: bases.Base, samples: list[PairSample]
) -> list[PairSample]:
  """Returns the same pairs as they are read without a narrative, if they have one."""
  if settings.scoring.placeholder != 'captions':
    return []
  scoring = dataclasses.replace(settings.scoring, placeholder='empty')
  cut = settings.reward.cut_answers
  return [
    pairs.encode_pair(sample.pair, tuned.tokenizer, scoring, run.data, cut)
    for sample in samples
  ]


def _train(
  settings: RewardRun,
  run: RunContext,
  train: list[PairSample],
  steps: list[batches.Step],
  step: sharding.Program,
  initial: TrainState,
  evaluation: HeldOutPairs,
  identity: dict[str, Any],
) -> TrainState:
  """Takes all steps, from the last checkpoint; returns the state after the last."""
  features, frozen = evaluation.features, evaluation.frozen

  def prepare(state: TrainState, done: int) -> None:
    scoring = pairwise.scoring_steps(evaluation.samples, run.mesh)
    shapes = functools.partial(pairwise.pair_shapes, features)
    for program, before, planned in (
      (step, (state, frozen), steps[done:]),
      (evaluation.score, (state.trainable, frozen), scoring),
    ):
      supervised.compile_ahead(program, before, planned, shapes, 'reward', settings.log)

  build = functools.partial(
    pairwise.planned_pair_batch, train, features, blind=settings.reward.blind
  )
  checkpointer = Checkpointer(run.folder, settings.checkpoint, identity)
  state = loop.fit(
    lambda state, batch: step(state, frozen, batch),
    initial,
    lambda first: batches.prefetch(build, steps[first:]),
    len(steps),
    title='reward',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    evaluate=evaluation.evaluate if evaluation.samples else None,
    evaluate_every=settings.reward.eval_every,
    media=lambda: pair_controls.media(evaluation.samples, evaluation.latest, run.data),
    profiler=Profiler(settings.profile, run.folder, [step]),
    work=lambda batch: pairwise.step_flops(settings, batch),
    prepare=prepare,
  )
  checkpointer.close()
  return state


def _artifact(
  settings: RewardRun,
  run: RunContext,
  tuned: bases.Base,
  state: TrainState,
  pairs_fingerprint: str,
) -> artifacts.Artifact:
  """Returns adapter and head, and what they were trained on."""
  return artifacts.Artifact(
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
      'scoring_text': prompts.load(settings.scoring.prompt),
      'pairs': pairs_fingerprint,
      'template': prompts.TEMPLATE,
    },
  )


def initial_head(
  settings: RewardRun, tuned: bases.Base, key: jax.Array
) -> heads.ScalarHead:
  """Returns the head at the start: random, or that of the judge of claims."""
  if settings.reward.head_start == 'random':
    return heads.init_head(key, settings.model.llama.width)
  vocabulary = tuned.params['llama']['head']['w']
  yes, no = (tuned.tokenizer.option(text) for text in ('Yes', 'No'))
  return heads.log_odds_head(vocabulary, yes, no)


def _pairs_file(settings: RewardRun, run: RunContext) -> pathlib.Path:
  """Returns the file of pairs: as named, or that of the stage label."""
  return pathlib.Path(settings.inputs.pairs or run.artifact('label', '') / 'pairs.json')


def _pairs(
  settings: RewardRun, run: RunContext, tuned: bases.Base, features: VisualFeatures
) -> tuple[list[PairSample], list[PairSample]]:
  """Returns training pairs, and pairs of held-out videos."""

  def parse_checked(parse: Callable[[], Pair]) -> Pair:
    pair = parse()
    examples.check_clip(pair.example.video, run.data.frames, pair.example.where)
    return pair

  # Rows: all checks come before a video is decoded
  path, files = _pairs_file(settings, run), readers.data_files(run.data)
  total, items = 0, []
  for _, parse in examples.pairs(path, run.data.ignore_fields):
    total += 1
    pair = run.skipped.attempt(functools.partial(parse_checked, parse))
    items += [] if pair is None else [pair]
    if run.data.max_samples and len(items) == run.data.max_samples:
      break
  items = readers.drop_missing(items, files, run.skipped, lambda pair: pair.example)
  samples = pairs.encode_pairs(
    items,
    tuned.tokenizer,
    settings.scoring,
    run.data,
    run.skipped,
    settings.reward.filter_too_long,
    settings.reward.cut_answers,
  )

  # Visual tokens
  bad = features.encode(
    [s.pair.example.video for s in samples if s.pair.example.video],
    'tokens',
    loop.bar('reward: encoding videos', settings.log, 'video'),
  )
  samples = [
    s for s in samples if readers.is_readable(s.pair.example, bad, run.skipped)
  ]
  run.skipped.files[path.name] = {'rows': total, 'bad': total - len(samples)}
  return _split(settings, run, samples)


def _split(
  settings: RewardRun, run: RunContext, samples: list[PairSample]
) -> tuple[list[PairSample], list[PairSample]]:
  """Returns pairs to train on and pairs of held-out videos.

  Of one file for every stage, the videos that evaluation asks about are in neither;
  labeling leaves them out, and another share is held out here.
  """
  path, data, files = _pairs_file(settings, run), run.data, readers.data_files(run.data)
  videos = [s.pair.example.video for s in samples if s.pair.example.video]
  later = Holdout([], 0)
  if data.train:
    # As the other stages see them: by all videos of the user's file.
    own = readers.videos_of(examples.read_rows(readers.locate(data, 'preference')))
    videos = [*own, *videos]
    later = Holdout(videos, data.holdout, files)
  share = Holdout(
    videos, data.holdout, files, holdout.OTHER_SHARE if data.train else ''
  )
  samples = [_placed(sample, share) for sample in samples]
  train, held_out = holdout.split(
    samples,
    lambda sample: sample.pair.example.place,
    lambda sample: sample.pair.example.video in share,
    settings.reward.eval_pairs,
    lambda sample: sample.pair.example.video in later,
  )
  run.skipped.report_split(path, len(train), len(held_out), 'pairs')
  if not train or (data.holdout and not held_out):
    raise examples.DataError(
      f'{path}: {len(train)} pairs to train on and '
      f'{len(held_out)} held out (data.holdout={data.holdout} of the videos); '
      'both must be at least 1'
    )
  return train, held_out


def _placed(sample: PairSample, names: Holdout) -> PairSample:
  """Returns a sample that knows the name of its video, the same of all copies."""
  example = sample.pair.example
  example = dataclasses.replace(example, place=names.name(example.video))
  return dataclasses.replace(
    sample, pair=dataclasses.replace(sample.pair, example=example)
  )
