"""The reward model: the tuned network with an adapter and a scalar head, from pairs.

A score is read from the last position of a left-padded sequence: question, answer,
</s>, reward prompt. Both answers of a pair share their visual tokens.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.config.stages import RewardRun
from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.data import batches, examples, pairs, prompts, sources
from vlm_rlaif_jax.data.examples import Pair
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.encode import Seen
from vlm_rlaif_jax.nn import heads, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.train import (
  artefacts,
  bases,
  flops,
  loop,
  optim,
  records,
  supervised,
)
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.profile import Profiler
from vlm_rlaif_jax.train.workspace import Workspace


def run(settings: RewardRun, workdir: str | pathlib.Path) -> dict:
  """Trains on the pairs of the label stage; leaves `lora` and `head`."""
  space = Workspace(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artefact('sft', settings.sft), settings.model)
  model = Vlm(settings.model, settings.lora)
  seen = space.seen(model, tuned)

  train, held_out = _pairs(settings, space, tuned, seen)
  steps = supervised.steps_of(train, settings.optim, [settings.seed])

  adapter_key, head_key = jax.random.split(jax.random.key(settings.seed))
  dtype = settings.optim.adapter_dtype
  trainable = {
    'lora': bases.init_adapter(settings.model, settings.lora, adapter_key, dtype),
    'head': heads.init_head(head_key, settings.model.llama.width),
  }
  optimizer = optim.make_optimizer(settings.optim)
  frozen, initial = supervised.place(settings, space, tuned, trainable, optimizer)
  rate = optim.learning_rate(settings.optim, len(steps))
  step, judge = programs(settings, model, optimizer, rate, space.mesh, initial, frozen)

  def evaluate(state) -> dict:
    return {
      'eval_accuracy': _accuracy(judge, state.trainable, frozen, held_out, seen)[
        'accuracy'
      ]
    }

  def build(samples: list[PairSample]):
    return functools.partial(_planned, samples, seen)

  def prepare(state, done: int) -> None:
    for program, before, planned, samples in (
      (step, (state, frozen), steps[done:], train),
      (judge, (state.trainable, frozen), _judged(held_out, space.mesh), held_out),
    ):
      supervised.compile_ahead(
        program, before, planned, build(samples), 'reward', settings.log
      )

  checkpointer = Checkpointer(
    space.folder,
    settings.checkpoint,
    records.identity(
      settings,
      tuned.fingerprint,
      total_steps=len(steps),
      **{records.DATA: hosts.files_fingerprint([_pairs_file(settings, space)])},
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
    work=lambda batch: work(settings, batch),
    prepare=prepare,
  )
  checkpointer.close()

  final = _accuracy(judge, state.trainable, frozen, held_out, seen)
  blind = _accuracy(judge, state.trainable, frozen, held_out, seen, blind=True)
  artefact = artefacts.Artefact(
    {
      'lora': sharding.to_host(state.trainable['lora']),
      'head': dataclasses.asdict(sharding.to_host(state.trainable['head'])),
    },
    {
      'stage': 'reward',
      'base': tuned.fingerprint,
      **bases.origin(settings.base, space.artefact('sft', settings.sft)),
      'lora': dataclasses.asdict(settings.lora),
      'scoring': dataclasses.asdict(settings.scoring),
      'template': prompts.TEMPLATE,
    },
  )
  artefacts.save(space.folder / 'artefact', artefact)
  summary = {
    'stage': 'reward',
    'lineage': settings.lineage,
    'pairs': len(train),
    'held_out': len(held_out),
    'skipped': space.skipped.reasons,
    'steps': len(steps),
    'trainable': trees.size(state.trainable),
    'bases': {'model': bases.held_bytes(frozen, settings.quant)},
    **final,
    'accuracy_without_video': blind['accuracy'],
    'artefact': str(space.folder / 'artefact'),
    'fingerprint': artefact.fingerprint,
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def programs(
  settings: RewardRun, model: Vlm, optimizer, rate, mesh, state, frozen
) -> tuple[sharding.Program, sharding.Program]:
  """The training step, and the scoring of pairs; trees are arrays or shapes."""
  centring = settings.reward.centring
  step = supervised.program(
    lambda t, b, batch, key: pair_loss(model, centring, t, b, batch, key),
    optimizer,
    rate,
    settings.optim.accumulate,
    mesh,
    state,
    frozen,
  )
  judge = sharding.Program(
    'judge',
    lambda t, b, batch: score_pairs(model, t, b, batch),
    mesh,
    (
      sharding.layout_of(state.trainable),
      sharding.layout_of(frozen),
      sharding.by_batch(mesh),
    ),
    sharding.by_batch(mesh),
  )
  return step, judge


def work(settings: RewardRun, batch: dict) -> tuple[float, float, float]:
  """Positions of a batch, operations that it needs, and those of recomputation."""
  rows, length = 2 * batch['ids'].shape[0], batch['ids'].shape[2]
  length += batch['tokens'].shape[1] - 1
  needed, again = flops.training(settings.model.llama, settings.lora, length)
  return rows * length, rows * needed, rows * again


def score_pairs(model: Vlm, trainable, base, batch, rngs=None):
  """Scores of both answers, `float32[B, 2]`.

  Args:
    trainable: `{'lora': ..., 'head': ScalarHead}`.
    batch: ids and valid `[B, 2, T]`, left-padded; tokens `[B, N, D]`, one video a pair.
  """
  pairs_count = batch['ids'].shape[0]
  flat = lambda x: x.reshape(2 * pairs_count, *x.shape[2:])
  hidden, _, _ = vlm.hidden(
    model,
    {'params': base, 'lora': trainable['lora']},
    flat(batch['ids']),
    flat(batch['valid']),
    jnp.repeat(batch['tokens'].astype(model.cfg.dtype), 2, axis=0),
    rngs=rngs,
  )
  return trainable['head'](hidden[:, -1]).reshape(pairs_count, 2)


def pair_loss(model: Vlm, centring: float, trainable, base, batch, key):
  """The Bradley-Terry loss of a micro-batch, and its metrics."""
  scores = score_pairs(model, trainable, base, batch, {'dropout': key})
  first, second = scores[:, 0], scores[:, 1]
  preferred, weight = batch['preferred'], batch['weight']
  loss = preference.bradley_terry_loss(first, second, preferred, centring, weight)
  return loss, {
    'accuracy': preference.pair_accuracy(first, second, preferred, weight),
    'score': jnp.mean(scores),
  }


def _pairs_file(settings: RewardRun, space: Workspace) -> pathlib.Path:
  return pathlib.Path(settings.pairs or space.artefact('label', '') / 'pairs.json')


def _pairs(
  settings: RewardRun, space: Workspace, tuned: bases.Base, seen: Seen
) -> tuple[list[PairSample], list[PairSample]]:
  """Training pairs, and those of held-out videos.

  Labelling leaves out the held-out videos of `data.train`, so among the others a second
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
    for item in sources.drop_unreadable(
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


def _batch(samples: list[PairSample | None], shape, seen: Seen) -> dict:
  """The whole batch on the device; each host reads its own rows."""
  frames, length = shape
  samples = samples[sharding.rows_of_this_host(len(samples), seen.mesh)]
  features = [
    seen.read('tokens', sample.pair.example.video)
    if sample and sample.pair.example.video
    else seen.blank('tokens', frames)
    for sample in samples
  ]
  batch = {**pairs.collate(samples, length), 'tokens': np.stack(features)}
  return sharding.put_batch(batch, seen.mesh)


def _planned(samples: list[PairSample], seen: Seen, step: batches.Step) -> dict:
  return _batch(_picked(samples, step), step.shape, seen)


def _picked(samples: list[PairSample], step: batches.Step) -> list[PairSample | None]:
  return [None if i == batches.BLANK else samples[i] for i in step.indices]


def _judged(samples: list[PairSample], mesh) -> list[batches.Step]:
  """The batches in which pairs are scored; about 32 pairs each."""
  shards = sharding.batch_shards(mesh)
  size = -(-32 // shards) * shards
  return batches.in_order([sample.shape for sample in samples], size)


def _accuracy(judge, trainable, frozen, samples, seen: Seen, blind=False) -> dict:
  """Accuracy on pairs, the share of second answers preferred, and the mean margin.

  Args:
    blind: with zeros in place of the video; what is left is skill without looking.
  """
  rows = []
  for step in _judged(samples, seen.mesh):
    picked = _picked(samples, step)
    batch = _batch(picked, step.shape, seen)
    if blind:
      batch['tokens'] = jnp.zeros_like(batch['tokens'])
    scores = sharding.to_host(judge(trainable, frozen, batch))
    rows += [
      (s[1] - s[0], sample.pair.preferred)
      for s, sample in zip(scores, picked, strict=True)
      if sample
    ]
  difference = np.asarray([row[0] for row in rows])
  preferred = np.asarray([row[1] for row in rows])
  return {
    'accuracy': float(np.mean((difference >= 0) == (preferred == 1))),
    'second_preferred': float(np.mean(preferred)),
    'margin': float(np.mean(np.abs(difference))),
  }
