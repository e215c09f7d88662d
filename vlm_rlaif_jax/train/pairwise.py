"""Training a scorer on pairs: the loss, the step, the batches, the accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

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
from vlm_rlaif_jax.train.state import TrainState

SCORED = 32  # pairs that are scored at a time, about


def programs(
  settings: RewardRun,
  model: Vlm,
  optimizer: optax.GradientTransformation,
  rate: Callable,
  mesh: Mesh,
  state: TrainState,
  frozen: Any,
) -> tuple[sharding.Program, sharding.Program]:
  """Returns the training step, and the scoring of pairs.

  Args:
    state, frozen: arrays, or shapes with shardings.
  """
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
  rows = sharding.by_batch(mesh)
  inputs = sharding.layout_of(state.trainable), sharding.layout_of(frozen), rows
  score = sharding.Program(
    'judge', lambda t, b, batch: score_pairs(model, t, b, batch), mesh, inputs, rows
  )
  return step, score


def step_flops(settings: RewardRun, batch: dict) -> tuple[float, float, float]:
  """Returns positions of a batch, operations that it needs, and recomputed ones."""
  rows, _, text = batch['ids'].shape
  return flops.pair_step(
    settings.model.llama, settings.lora, rows, text, batch['visual'].shape[1]
  )


def score_pairs(
  model: Vlm, trainable: dict, base: Any, batch: dict, rngs: dict | None = None
) -> jax.Array:
  """Returns the scores of both answers, `float32[B, 2]`.

  Args:
    trainable: `{'lora': ..., 'head': ScalarHead}`.
    batch: ids and valid `[B, 2, T]`, left-padded; visual `[B, N, D]`, one video a pair.
  """
  count = batch['ids'].shape[0]
  ids, valid = (
    batch[name].reshape(2 * count, *batch[name].shape[2:]) for name in ('ids', 'valid')
  )
  hidden, _, _ = vlm.hidden(
    model,
    {'params': base, 'lora': trainable['lora']},
    ids,
    valid,
    jnp.repeat(batch['visual'].astype(model.cfg.dtype), 2, axis=0),
    rngs=rngs,
  )
  return trainable['head'](hidden[:, -1]).reshape(count, 2)


def pair_loss(
  model: Vlm, centering: float, trainable: dict, base: Any, batch: dict, key: jax.Array
) -> tuple[jax.Array, dict]:
  """Returns the Bradley-Terry loss of a micro-batch, and its metrics."""
  scores = score_pairs(model, trainable, base, batch, {'dropout': key})
  first, second = scores[:, 0], scores[:, 1]
  preferred, weight = batch['preferred'], batch['weight']
  loss = preference.bradley_terry_loss(first, second, preferred, centering, weight)
  return loss, {
    'accuracy': preference.pair_accuracy(first, second, preferred, weight),
    'score': jnp.mean(scores),
  }


def pair_batch(
  samples: list[PairSample | None], shape: Any, features: VisualFeatures
) -> dict:
  """Returns a batch on the devices; each host reads the rows of its own.

  Args:
    samples: None stands for a blank row.
    shape: frames and text length that they share.
  """
  frames, length = shape
  samples = samples[sharding.rows_of_this_host(len(samples), features.mesh)]
  visual = [
    features.read('tokens', sample.pair.example.video)
    if sample and sample.pair.example.video
    else features.blank('tokens', frames)
    for sample in samples
  ]
  batch = {**pairs.collate(samples, length), 'visual': np.stack(visual)}
  return sharding.put_batch(batch, features.mesh)


def pair_shapes(features: VisualFeatures, step: batches.Step) -> dict:
  """Returns the shapes of the batch of a step; nothing is read."""
  frames, length = step.shape  # type: ignore[misc]
  blank = features.blank('tokens', frames)
  row = {**pairs.collate([None], length), 'visual': blank[None]}
  return supervised.shapes_of_rows(row, len(step.indices), features.mesh)


def planned_pair_batch(
  samples: list[PairSample], features: VisualFeatures, step: batches.Step
) -> dict:
  """Returns the batch of a step."""
  return pair_batch(_samples_of(samples, step), step.shape, features)


def _samples_of(
  samples: list[PairSample], step: batches.Step
) -> list[PairSample | None]:
  """Returns the samples of a step; None for its blank rows."""
  return [None if i == batches.BLANK else samples[i] for i in step.indices]


def scoring_steps(samples: list[PairSample], mesh: Mesh) -> list[batches.Step]:
  """Returns the batches in which pairs are scored."""
  shards = sharding.batch_shards(mesh)
  size = -(-SCORED // shards) * shards
  return batches.in_order([sample.shape for sample in samples], size)


def pair_metrics(
  score: sharding.Program,
  trainable: dict,
  frozen: Any,
  samples: list[PairSample],
  features: VisualFeatures,
  blind: bool = False,
) -> dict[str, float]:
  """Returns accuracy, the share of second answers preferred, and the mean margin.

  Args:
    blind: with zeros in place of the video; what remains is skill without it.
  """
  rows = []
  for step in scoring_steps(samples, features.mesh):
    picked = _samples_of(samples, step)
    batch = pair_batch(picked, step.shape, features)
    if blind:
      batch['visual'] = jnp.zeros_like(batch['visual'])
    scores = sharding.to_host(score(trainable, frozen, batch))
    rows += [
      (pair[1] - pair[0], sample.pair.preferred)
      for pair, sample in zip(scores, picked, strict=True)
      if sample
    ]
  difference, preferred = np.asarray(rows).T
  return {
    'accuracy': float(np.mean((difference >= 0) == (preferred == 1))),
    'second_preferred': float(np.mean(preferred)),
    'margin': float(np.mean(np.abs(difference))),
  }
