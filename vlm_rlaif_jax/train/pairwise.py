"""Training on pairs: the loss, the step, the batches, the accuracy."""

import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, pairs
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.train import supervised
from vlm_rlaif_jax.train.profiling import flops


def programs(
  settings: RewardRun, model: Vlm, optimizer, rate, mesh, state, frozen
) -> tuple[sharding.Program, sharding.Program]:
  """The training step, and the scoring of pairs; trees are arrays or shapes."""
  centering = settings.reward.centering
  step = supervised.program(
    lambda t, b, batch, key: pair_loss(model, centering, t, b, batch, key),
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


def step_flops(settings: RewardRun, batch: dict) -> tuple[float, float, float]:
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


def pair_loss(model: Vlm, centering: float, trainable, base, batch, key):
  """The Bradley-Terry loss of a micro-batch, and its metrics."""
  scores = score_pairs(model, trainable, base, batch, {'dropout': key})
  first, second = scores[:, 0], scores[:, 1]
  preferred, weight = batch['preferred'], batch['weight']
  loss = preference.bradley_terry_loss(first, second, preferred, centering, weight)
  return loss, {
    'accuracy': preference.pair_accuracy(first, second, preferred, weight),
    'score': jnp.mean(scores),
  }


def pair_batch(samples: list[PairSample | None], shape, seen: VisualFeatures) -> dict:
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


def planned_pair_batch(
  samples: list[PairSample], seen: VisualFeatures, step: batches.Step
) -> dict:
  return pair_batch(picked_samples(samples, step), step.shape, seen)


def picked_samples(
  samples: list[PairSample], step: batches.Step
) -> list[PairSample | None]:
  return [None if i == batches.BLANK else samples[i] for i in step.indices]


def scoring_steps(samples: list[PairSample], mesh) -> list[batches.Step]:
  """The batches in which pairs are scored; about 32 pairs each."""
  shards = sharding.batch_shards(mesh)
  size = -(-32 // shards) * shards
  return batches.in_order([sample.shape for sample in samples], size)


def pair_metrics(
  judge, trainable, frozen, samples, seen: VisualFeatures, blind=False
) -> dict:
  """Accuracy on pairs, the share of second answers preferred, and the mean margin.

  Args:
    blind: with zeros in place of the video; what is left is skill without looking.
  """
  rows = []
  for step in scoring_steps(samples, seen.mesh):
    picked = picked_samples(samples, step)
    batch = pair_batch(picked, step.shape, seen)
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
