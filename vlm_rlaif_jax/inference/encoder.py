"""From the frames of videos to patch features and visual tokens, in batches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import image, video
from vlm_rlaif_jax.data.feature_store import NotFiniteError
from vlm_rlaif_jax.nn import layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError

Paths = tuple[str, ...]


def normalize(frames: jax.Array) -> jax.Array:
  """Returns (x / 255 - mean) / std with CLIP's constants, `uint8` -> `float32`.

  It runs on the device, so that a fourth of the bytes are transferred; it differs from
  CLIP's preprocessing on a CPU by at most rounding.

  Args:
    frames: `uint8[..., 3]`.
  """

  def broadcast(constant: np.ndarray) -> jax.Array:
    return layers.expand_to_last_axis(jnp.asarray(constant), frames)

  centered = frames.astype(jnp.float32) / 255 - broadcast(image.MEAN)
  return centered / broadcast(image.STD)


def encode_frames(model: Vlm, params: Any, frames: jax.Array) -> jax.Array:
  """Encodes square frames: the one way from pictures to patch features.

  Args:
    params: `{'tower': ...}`.
    frames: `uint8[B, S, S, 3]`, see `data.image.squares`.

  Returns:
    patch features `[B, P, C]`.
  """
  return vlm.patch_features(model, params, normalize(frames))


def programs(
  model: Vlm, mesh: jax.sharding.Mesh, params: Any
) -> tuple[sharding.Program, sharding.Program]:
  """Returns the programs that encode frames and project patch features.

  The first maps frames `uint8[B, S, S, 3]` to patch features `[B, P, C]`, the second
  patch features `[B, F, P, C]` to visual tokens `[B, F + P, D]`.

  Args:
    params: `tower` and `projector`, arrays or shapes with a sharding.
  """
  rows, layout = sharding.by_batch(mesh), sharding.layout_of(params)

  def program(name: str, function: Callable) -> sharding.Program:
    bound = functools.partial(function, model)
    return sharding.Program(name, bound, mesh, (layout, rows), rows)

  return program('encode', encode_frames), program('project', vlm.project)


class Encoder:
  """Encodes videos a batch at a time and hands their features on.

  Args:
    params: `tower` and `projector` on the devices of the mesh.
    mesh: each of its devices encodes different videos.
    requested: the samples whose features are wanted, by the paths of their video.
    pools: whether these are visual tokens, of each sample; else patch features, of
      whole videos.
    batch: videos at a time.
    write: called with every sample and its features.
  """

  def __init__(
    self,
    model: Vlm,
    params: Any,
    mesh: jax.sharding.Mesh,
    requested: dict[Paths, set[video.Video]],
    pools: bool,
    batch: int,
    write: Callable[[video.Video, np.ndarray], None],
  ):
    self.params, self.mesh, self.requested = params, mesh, requested
    self.pools, self.write = pools, write
    shards = sharding.batch_shards(mesh)
    self.batch = max(shards, batch // shards * shards)
    self.run_tower, self.run_projector = programs(model, mesh, params)
    self.waiting: dict[str, list[tuple[Paths, np.ndarray]]] = {
      'frames': [],
      'patches': [],
    }

  def add(self, paths: Paths, what: str, value: np.ndarray) -> None:
    """Adds a video; encodes when there are enough for a batch.

    Args:
      what: 'frames' for `uint8[F, S, S, 3]`, 'patches' for features `[F, P, C]` that
        only have to be pooled.
    """
    self.waiting[what].append((paths, value))
    if len(self.waiting[what]) == self.batch:
      self._encode(what)

  def flush(self) -> None:
    """Encodes the videos that wait."""
    for what, waiting in self.waiting.items():
      if waiting:
        self._encode(what)

  def _encode(self, what: str) -> None:
    """Encodes the videos that wait as frames, or as patches."""
    videos = [paths for paths, _ in self.waiting[what]]
    stacked = np.stack([value for _, value in self.waiting[what]])
    self.waiting[what].clear()
    missing = self.batch - len(stacked)
    padding = ((0, missing), *((0, 0),) * (stacked.ndim - 1))
    stacked = np.pad(stacked, padding, mode='edge')
    rows = sharding.by_batch(self.mesh)
    if what == 'patches':
      patches = jax.device_put(stacked, rows)
    else:
      count, frames = stacked.shape[:2]
      flat = jax.device_put(stacked.reshape(-1, *stacked.shape[2:]), rows)
      patches = self.run_tower(self.params, flat)
      patches = patches.reshape(count, frames, *patches.shape[1:])
    if self.pools:
      self._pool(videos, patches)
      return
    for paths, value in zip(videos, np.asarray(patches), strict=False):
      self._write(video.Video(paths), value)

  def _pool(self, videos: list[Paths], patches: jax.Array) -> None:
    """Projects every clip of the videos. patches: `[B, F, P, C]`."""
    clips = {item.clip for paths in videos for item in self.requested[paths]}
    for clip in sorted(clips, key=lambda c: c or (-1, -1)):
      part = patches[:, slice(*clip)] if clip else patches
      tokens = np.asarray(self.run_projector(self.params, jnp.asarray(part)))
      for paths, value in zip(videos, tokens, strict=False):
        item = video.Video(paths, clip)
        if item in self.requested[paths]:
          self._write(item, value)

  def _write(self, item: video.Video, value: np.ndarray) -> None:
    """Hands features on; raises UserError, which names the video, for no numbers."""
    try:
      self.write(item, value)
    except NotFiniteError as error:
      raise UserError(f'{item.paths[0]}: {error}') from None
