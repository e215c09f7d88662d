"""Grows a network into a wider and deeper one that computes the same (Net2Net).

    wider     every unit is there m times, and what reads it divides its weight over the
              m copies: at random, so that they learn different things
    deeper    after every layer come copies of it that add nothing to the residual
              stream until they are trained

Chen, Goodfellow and Shlens 2016 (Net2Net); of transformers, Chen et al. 2022
(bert2BERT). Heads keep their width, so their number grows with the network; norms
divide by a root mean square, which copies leave as it is.
"""

import dataclasses
import zlib
from typing import Any

import numpy as np

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights.artifacts import ArtifactError
from vlm_rlaif_jax.weights.network_shapes import abstract_params

WRITERS = ('o', 'down')  # the linears that write to the residual stream
LAYERS = 'llama/layers/'
# A copy's part of a weight, of m copies: 1 / m, more or less by up to half of it.
SPREAD = 0.5
# What growth leaves as it is, beside the frames' tower.
FIXED = ('head_dim', 'rope_theta', 'eps', 'vocab')
MULTIPLIED = ('width', 'heads', 'kv_heads', 'mlp', 'layers')


def grow(
  params: dict[str, Any], small: VlmConfig, large: VlmConfig, seed: int = 0
) -> dict[str, Any]:
  """Returns projector and decoder of a larger network that computes the same.

  Args:
    params: projector, llama of the small network.
    seed: of the parts that copies get.

  Returns:
    projector, llama of the large one, float32: from the same visual features they make
    the same visual tokens, each m times side by side, and the same logits.

  Raises:
    ArtifactError: no multiple of the small network is the large one.
  """
  _check(small, large)
  flat = trees.flatten({name: params[name] for name in ('projector', 'llama')})
  shapes = trees.flatten(abstract_params(large))
  return trees.unflatten(
    {name: _leaf(name, leaf, shapes[name].shape, seed) for name, leaf in flat.items()}
  )


def _check(small: VlmConfig, large: VlmConfig) -> None:
  """Raises ArtifactError if a small network cannot become this large one."""
  old, new = dataclasses.asdict(small.llama), dataclasses.asdict(large.llama)
  differing = [
    f'llama.{name}={old[name]} (this run has {new[name]})'
    for name in FIXED
    if old[name] != new[name]
  ]
  if small.vision != large.vision or small.projector != large.projector:
    differing.append('another vision tower or projector')
  differing += [
    f'llama.{name}={old[name]}, of which {new[name]} is no multiple'
    for name in MULTIPLIED
    if new[name] % old[name]
  ]
  if old['heads'] * new['kv_heads'] != new['heads'] * old['kv_heads']:
    differing.append('another number of heads for each key head')
  if differing:
    raise ArtifactError(
      f'config.base: cannot grow into config.model ({large.name}); it has '
      + ', '.join(differing)
    )


def _leaf(name: str, leaf: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
  """Returns a leaf in the shape that it has in the large network."""
  leaf = np.asarray(leaf, np.float32)
  *_, owner, kind = name.split('/')
  if name.startswith(LAYERS):
    times = shape[0] // leaf.shape[0]
    leaf = np.repeat(leaf, times, axis=0)
    if kind == 'w' and owner in WRITERS:
      leaf[np.arange(len(leaf)) % times > 0] = 0
  copies = [new // old for new, old in zip(shape, leaf.shape, strict=True)]
  # The projector's first linear reads features of the tower, which does not grow; the
  # rows of the embeddings are units themselves.
  if kind == 'w' and owner != 'tokens' and copies[-1] > 1:
    leaf = _divide(leaf, copies.pop(), (seed, zlib.crc32(name.encode())))
    copies.append(1)
  return np.tile(leaf, copies)


def _divide(leaf: np.ndarray, copies: int, seed: tuple[int, int]) -> np.ndarray:
  """Returns `[..., copies x in]`: weights divided over the copies of their inputs."""
  rng = np.random.default_rng(seed)
  shape = (*leaf.shape[:-1], copies, leaf.shape[-1])
  parts = rng.uniform(1 - SPREAD, 1 + SPREAD, shape)
  parts /= parts.sum(axis=-2, keepdims=True)
  divided = leaf[..., None, :] * parts.astype(np.float32)
  return divided.reshape(*leaf.shape[:-1], -1)
