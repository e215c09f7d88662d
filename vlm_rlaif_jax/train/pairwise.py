"""Training a scorer on pairs: the loss, the step, the batches, the accuracy."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
from vlm_rlaif_jax.train import sample_batches, step_weights, supervised
from vlm_rlaif_jax.train.metrics import NonFiniteError
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.state import TrainState

View = Literal['own', 'blank', 'other']  # which video a pair is scored with
MARGINS = 'margins.json'  # below the stage: what the scores of these pairs differ by
HELD_OUT = 'held_out.json'  # below the stage: the pairs that it was not trained on
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
  centering, optim = settings.reward.centering, settings.optim
  extend = None
  if scores_first(settings):
    extend = functools.partial(add_center_sign, model)
  step = supervised.program(
    lambda t, b, batch, key: pair_loss(model, centering, t, b, batch, key),
    optimizer,
    rate,
    optim.accumulate,
    mesh,
    state,
    frozen,
    step_weights.weigh_by(lambda micro: micro['weight'], optim.loss_mean),
    extend,
  )
  return step, score_program(model, mesh, state.trainable, frozen)


def scores_first(settings: RewardRun) -> bool:
  """Returns whether a step computes all its scores before the gradients.

  It does for a centering term that is of all its micro-batches.
  """
  optim = settings.optim
  in_parts = optim.accumulate > 1 and optim.loss_mean == 'step'
  return bool(settings.reward.centering) and in_parts


def score_program(
  model: Vlm, mesh: Mesh, trainable: Any, frozen: Any
) -> sharding.Program:
  """Returns the program of `score_pairs`.

  Args:
    trainable, frozen: arrays, or shapes with shardings.
  """
  rows = sharding.by_batch(mesh)
  inputs = sharding.layout_of(trainable), sharding.layout_of(frozen), rows
  return sharding.Program(
    'judge', lambda t, b, batch: score_pairs(model, t, b, batch), mesh, inputs, rows
  )


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


def add_center_sign(
  model: Vlm, current: TrainState, base: Any, micro: dict, parts: jax.Array
) -> dict:
  """Adds `center_sign [A]`: the sign of the mean of all scores of a step.

  The absolute value of that mean is no sum over micro-batches, but with its sign known
  it is. So the scores are computed once more, before the gradients.

  Args:
    micro: the micro-batches of a step, `[A, B, ...]`; parts: their weights `[A]`.
  """

  def center_of(item: tuple) -> jax.Array:
    index, batch = item
    rngs = {'dropout': current.at_step(index)}  # as in the pass of the gradient
    scores = score_pairs(model, current.trainable, base, batch, rngs)
    weight = batch['weight']
    total = jnp.sum(jnp.sum(scores, axis=1) * weight)
    return total / jnp.maximum(jnp.sum(weight), 1)

  with jax.named_scope('update/center'):
    centers = jax.lax.map(center_of, (jnp.arange(parts.shape[0]), micro))
  sign = jnp.sign(jnp.sum(parts * centers))
  return {**micro, 'center_sign': jnp.full(parts.shape, sign)}


def pair_loss(
  model: Vlm, centering: float, trainable: dict, base: Any, batch: dict, key: jax.Array
) -> tuple[jax.Array, dict]:
  """Returns the Bradley-Terry loss of a micro-batch, and its metrics.

  Args:
    batch: as of `score_pairs`, with preferred and weight `[B]`; `center_sign []`, if it
      is a part of a step.
  """
  scores = score_pairs(model, trainable, base, batch, {'dropout': key})
  first, second = scores[:, 0], scores[:, 1]
  preferred, weight = batch['preferred'], batch['weight']
  count = jnp.maximum(jnp.sum(weight), 1)
  loss = preference.bradley_terry_loss(
    first, second, preferred, centering, weight, batch.get('center_sign')
  )
  return loss, {
    'accuracy': preference.pair_accuracy(first, second, preferred, weight),
    'score': jnp.sum(jnp.mean(scores, axis=1) * weight) / count,
  }


def pair_batch(
  samples: list[PairSample | None],
  shape: Any,
  features: VisualFeatures,
  video_samples: list[PairSample | None] | None = None,
) -> dict:
  """Returns a batch on the devices; each host reads the rows of its own.

  Args:
    samples: None stands for a blank row.
    shape: frames and text length that they share.
    video_samples: samples whose videos are in the batch; None: their own.
  """
  frames, length = shape
  rows = sharding.rows_of_this_host(len(samples), features.mesh)
  samples, video_samples = samples[rows], (video_samples or samples)[rows]
  visual = [
    features.read('tokens', sample.pair.example.video)
    if sample and sample.pair.example.video
    else features.blank('tokens', frames)
    for sample in video_samples
  ]
  batch = {**pairs.collate(samples, length), 'visual': np.stack(visual)}
  return sharding.put_batch(batch, features.mesh)


def pair_shapes(features: VisualFeatures, step: batches.Step) -> dict:
  """Returns the shapes of the batch of a step; nothing is read."""
  frames, length = step.shape  # type: ignore[misc]
  blank = features.blank('tokens', frames)
  row = {**pairs.collate([None], length), 'visual': blank[None]}
  return sample_batches.shapes_of_rows(row, len(step.indices), features.mesh)


def planned_pair_batch(
  samples: list[PairSample],
  features: VisualFeatures,
  step: batches.Step,
  blind: bool = False,
) -> dict:
  """Returns the batch of a step; if blind, with zeros in place of the videos."""
  batch = pair_batch(_samples_of(samples, step), step.shape, features)
  if blind:
    batch['visual'] = jnp.zeros_like(batch['visual'])
  return batch


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


def pair_margins(
  score: sharding.Program,
  trainable: dict,
  frozen: Any,
  samples: list[PairSample],
  features: VisualFeatures,
  view: View = 'own',
) -> np.ndarray:
  """Returns score of the second answer - score of the first, `float64[pairs]`.

  Args:
    view: 'own': the video of the pair; 'blank': zeros in its place; 'other': the video
      of another pair, the next one of another video.
  """
  margins = np.zeros(len(samples))
  video_samples = other_videos(samples) if view == 'other' else samples
  for step in scoring_steps(samples, features.mesh):
    videos: list[PairSample | None] = [None] * len(step.indices)
    if view != 'blank':
      videos = _samples_of(video_samples, step)
    batch = pair_batch(_samples_of(samples, step), step.shape, features, videos)
    scores = sharding.to_host(score(trainable, frozen, batch))
    for pair, index in zip(scores, step.indices, strict=True):
      if index != batches.BLANK:
        margins[index] = pair[1] - pair[0]
  if not np.isfinite(margins).all():
    raise NonFiniteError(
      f'scores of {np.sum(~np.isfinite(margins))} of {len(samples)} pairs are NaN or '
      'infinite; the reward model is not usable'
    )
  return margins


def other_videos(samples: Sequence[PairSample]) -> list[PairSample]:
  """Returns for each sample the next one of another video with as many frames.

  Another part of the video, or a copy, is no other one, and neither is none. A sample
  that has none stands for itself.
  """
  places = [pairs.place_of(sample.pair) for sample in samples]
  others = []
  for index, sample in enumerate(samples):
    following = (*range(index + 1, len(samples)), *range(index))
    others.append(
      next(
        (
          samples[other]
          for other in following
          if samples[other].frames == sample.frames
          and places[other] not in ('', places[index])
        ),
        sample,
      )
    )
  return others
