"""Losses of the tiny base: what linear probes read off its tokens, and its answers.

A probe is a linear map that is trained with the network and thrown away. That of a
picture reads the attributes of its objects off one pooled token; that of a strip reads
what every object does, and how far it moves, off the states of the visual tokens
halfway up the language model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world import stills
from vlm_rlaif_jax.data.world.lessons import ACTIONS, COLORS, FIELDS
from vlm_rlaif_jax.inference import encoder
from vlm_rlaif_jax.nn import clip, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import contrastive
from vlm_rlaif_jax.settings.constants import PAD, VIDEO
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.stage import RANDOM
from vlm_rlaif_jax.train import journal, supervised
from vlm_rlaif_jax.weights import bases

Metrics = dict[str, jax.Array]


def noisy_pixels(frames: jax.Array, settings: PretrainRun, key: jax.Array) -> jax.Array:
  """Returns `uint8[..., 3]` normalized as CLIP's input, with a little noise."""
  pixels = encoder.normalize(frames)
  return pixels + settings.pretrain.noise * jax.random.normal(key, pixels.shape)


def grown_from(settings: PretrainRun) -> dict[str, str]:
  """Returns the fingerprint of the base that a network grows from, if there is one."""
  if settings.base == RANDOM:
    return {}
  return {journal.GROWN_FROM: bases.fingerprint(bases.base_folder(settings.base))}


# ---------------------------------------------------------------- the tower


def tower_loss(
  model: Vlm,
  pair: clip.Clip,
  settings: PretrainRun,
  trainable: Any,
  batch: dict[str, jax.Array],
  key: jax.Array,
) -> tuple[jax.Array, Metrics]:
  """Returns CLIP's loss plus that of the attributes of each picture, and metrics.

  Args:
    pair: image and text tower with CLIP's loss.
    trainable: tower, projector, probe, text, logit_scale.
    batch: of `lessons.tower_batch`.
  """
  pixels = noisy_pixels(batch['pictures'], settings, key)

  # Attributes, off the pooled token of one picture.
  patches = vlm.patch_features(model, {'tower': trainable['tower']}, pixels)
  pooled = vlm.project(model, {'projector': trainable['projector']}, patches[:, None])
  named, metrics = probe_loss(trainable['probe'], pooled[:, 0], batch['attributes'])

  # Captions, of the first half of the pictures.
  count = batch['captions'].shape[0]
  params = {
    'vision': trainable['tower'],
    'text': trainable['text'],
    'logit_scale': trainable['logit_scale'],
  }
  similarity = pair.apply({'params': params}, pixels[:count], batch['captions'])
  contrast = contrastive.clip_loss(similarity)  # type: ignore[arg-type]
  metrics['contrast'] = contrast
  return named + settings.pretrain.contrastive * contrast, metrics


def probe_loss(
  probe: dict[str, jax.Array], token: jax.Array, attributes: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Returns the loss of reading each color's presence, shape and place off a token.

  Args:
    token: `[B, D]`.
    attributes: `float32[B, colors, 4]`, presence, shape, x, y in [0, 1].
  """
  read = token @ probe['w'] + probe['b'][None]
  read = read.reshape(token.shape[0], len(COLORS), FIELDS)
  present = attributes[..., 0]
  count = jnp.maximum(jnp.sum(present), 1)
  shape = attributes[..., 1].astype(jnp.int32)
  presence = jnp.mean(optax.sigmoid_binary_cross_entropy(read[..., 0], present))
  shapes = optax.softmax_cross_entropy_with_integer_labels(read[..., 1:-2], shape)
  away = jnp.sum(jnp.square(read[..., -2:] - 4 * attributes[..., 2:]), axis=-1)
  shapes, away = (jnp.sum(x * present) / count for x in (shapes, away))
  right = jnp.sum((jnp.argmax(read[..., 1:-2], -1) == shape) * present) / count
  pixels = scenes.CANVAS / 4 * jnp.sqrt(away / 2)
  return presence + shapes + away, {
    'shape_accuracy': right,
    'pixels_off': pixels,
  }


# ---------------------------------------------------------------- the language model


def init_motion_probe(width: int, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
  """Returns maps from the state of a visual token to actions and displacements."""

  def init_linear(key: jax.Array, outputs: int) -> dict[str, jax.Array]:
    weights = 0.05 * jax.random.normal(key, (width, outputs))
    return {'w': weights, 'b': jnp.zeros(outputs)}

  action, displacement = jax.random.split(key)
  return {
    'action': init_linear(action, len(COLORS) * ACTIONS),
    'displacement': init_linear(displacement, len(COLORS) * 2),
  }


def motion_loss(
  model: Vlm, trainable: Any, task: dict[str, jax.Array], scale: float
) -> tuple[jax.Array, Metrics]:
  """Returns the loss of reading what each object does off the tokens of a strip.

  Of the last picture of a phase, what the object does in the phase; of every picture,
  how far it has moved since the one before. The states are those of the lower half of
  the layers, after the final norm.

  Args:
    trainable: llama, linear_probe.
    task: a task with the labels of `lessons.motion_labels`.
    scale: weight of the actions beside the displacements.
  """
  states = _half_depth_states(model, trainable['llama'], task)
  size, probe = states.shape[0], trainable['linear_probe']

  def read(states: jax.Array, linear: dict[str, jax.Array]) -> jax.Array:
    return states @ linear['w'] + linear['b'][None, None]

  # Actions.
  each = stills.STRIP // scenes.PHASES
  action = read(states[:, each - 1 :: each], probe['action'])
  action = action.reshape(size, scenes.PHASES, len(COLORS), ACTIONS)
  label = task['action']
  present = label >= 0
  wrong = optax.softmax_cross_entropy_with_integer_labels(action, jnp.maximum(label, 0))
  count = jnp.maximum(jnp.sum(present), 1)
  wrong = jnp.sum(wrong * present) / count
  right = jnp.sum((jnp.argmax(action, -1) == label) & present) / count

  # Displacements.
  moves = read(states, probe['displacement'])
  moves = moves.reshape(*states.shape[:2], len(COLORS), 2)
  visible = task['displacement'][..., :1]
  off = jnp.sum(jnp.square(moves - task['displacement'][..., 1:]) * visible)
  off /= jnp.maximum(jnp.sum(visible), 1)
  return scale * wrong + off, {'course_accuracy': right, 'moves_off': off}


def _half_depth_states(model: Vlm, llama: Any, task: dict[str, jax.Array]) -> jax.Array:
  """Returns the states of a strip's pictures, `[B, STRIP, D]`, halfway up."""
  cfg = model.cfg
  depth = max(1, cfg.llama.layers // 2)
  lower = Vlm(
    dataclasses.replace(cfg, llama=dataclasses.replace(cfg.llama, layers=depth))
  )
  layers = jax.tree.map(lambda leaf: leaf[:depth], llama['layers'])
  params = {'llama': {**llama, 'layers': layers}}
  visual = task['visual'][:, : stills.STRIP].astype(jnp.float32)
  ids = task['ids'][:, :1]  # <s>
  ids = jnp.concatenate([ids, jnp.full_like(ids, VIDEO)], axis=1)
  states, _, _ = vlm.hidden(lower, {'params': params}, ids, ids != PAD, visual)
  return states[:, 1:]


def text_loss(
  model: Vlm,
  settings: PretrainRun,
  trainable: Any,
  batch: dict[str, dict[str, jax.Array]],
) -> tuple[jax.Array, Metrics]:
  """Returns the loss of the answers of every task, and that of the motion probe.

  Args:
    trainable: llama, linear_probe.
    batch: of `lessons.TextTaskSampler`; "Yes" and "No" weigh more than other tokens.
  """

  def weighted_nll(logprobs: jax.Array, weight: jax.Array) -> jax.Array:
    return -jnp.sum(logprobs * weight) / jnp.maximum(jnp.sum(weight), 1)

  params = {'llama': trainable['llama']}
  judged = settings.pretrain.judged
  total, metrics = jnp.zeros(()), {}
  for name, task in sorted(batch.items()):
    ids, weight = task['ids'], task['weight'][:, 1:]
    visual = jnp.zeros((ids.shape[0], 1, model.cfg.llama.width))
    if 'visual' in task:
      visual = task['visual'].astype(jnp.float32)
    if 'action' in task:
      loss, read = motion_loss(model, trainable, task, settings.pretrain.motion)
      metrics |= read
      total += loss
    logprobs = supervised.target_logprobs(
      model, {'params': params}, ids, ids != PAD, visual
    )
    metrics[name] = weighted_nll(logprobs, weight)
    if name != 'part':  # nothing is judged there
      metrics[f'{name}_judged'] = weighted_nll(logprobs, weight == judged)
    total += metrics[name]
  return total, metrics
