"""Visual features of videos, computed once by frozen networks and stored on disk."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import batches, image, video
from vlm_rlaif_jax.data.feature_store import FeatureStore, video_key
from vlm_rlaif_jax.nn import layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig

Paths = tuple[str, ...]
Progress = Callable[[Any, int], Iterable]


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


class VisualFeatures:
  """Features of videos by sample; a list of videos is encoded at once.

  Args:
    model: the network.
    load: puts `tower` and `projector` on the devices of this host, where they stay only
      while videos are encoded.
    fingerprint: of those weights.
    data: root, frame sampling and number of workers are taken from it.
    folder: where all feature stores are.
    mesh: of the run; each of its devices encodes different videos, with all weights.
  """

  def __init__(
    self,
    model: Vlm,
    load: Callable[[], Any],
    fingerprint: str,
    data: DataConfig,
    folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
  ):
    self.model, self.load, self.data, self.mesh = model, load, data, mesh
    self.local_mesh = sharding.data_mesh(mesh.local_devices)
    cfg = model.cfg
    patches = {
      'what': 'patches',
      'weights': fingerprint,
      'vision': dataclasses.asdict(cfg.vision),
      'frames': data.frames,
      'aspect': data.aspect,
      'computed_in': cfg.dtype,
    }
    tokens = {**patches, 'what': 'tokens', 'projector': cfg.projector}
    dtype = 'float16' if cfg.dtype == 'float32' else cfg.dtype
    self.patches = FeatureStore(folder, patches, dtype)
    self.tokens = FeatureStore(folder, tokens, dtype)
    self._keys: dict[video.Video, str] = {}

  def key(self, item: video.Video) -> str:
    """Returns the key of a sample's features in a store."""
    if item not in self._keys:
      self._keys[item] = video_key(item, self.data.root)
    return self._keys[item]

  def read(self, kind: str, item: video.Video) -> np.ndarray:
    """Returns stored features of a sample, cut to its clip.

    Args:
      kind: 'patches' for `[F, P, C]`, 'tokens' for `[F + P, D]`.
    """
    if kind == 'tokens':
      return self.tokens.read(self.key(item))
    full = self.patches.read(self.key(video.Video(item.paths)))
    return full[slice(*item.clip)] if item.clip else full

  def blank(self, kind: str, frames: int) -> np.ndarray:
    """Returns zeros in place of the features of a sample that has no video."""
    vision, llama = self.model.cfg.vision, self.model.cfg.llama
    if kind == 'tokens':
      return np.zeros((frames + vision.patches, llama.width), self.tokens.dtype)
    return np.zeros((frames, vision.patches, vision.width), self.patches.dtype)

  def encode(
    self,
    items: Sequence[video.Video],
    kind: str,
    progress: Progress = lambda videos, total: videos,
    batch: int = 16,
  ) -> dict[video.Video, str]:
    """Encodes every video that is not in the store yet.

    Hosts divide the videos among them, and each encodes its part on its own devices.

    Args:
      kind: 'patches' (while the projector trains) or 'tokens' (once it is frozen).
      progress: wraps the videos of this host; the second argument is how many.
      batch: videos at a time, over the devices of this host.

    Returns:
      The videos that cannot be read, and why.
    """
    unique = list(dict.fromkeys(items))
    requested, bad = self._missing(unique, kind)

    def read(paths: Paths) -> np.ndarray | video.VideoError:
      try:
        frames = video.read_frames(video.Video(paths), self.data.root, self.data.frames)
        size = self.model.cfg.vision.image_size
        return image.squares(frames, size, self.data.aspect)
      except video.VideoError as error:
        return error

    shards = sharding.batch_shards(self.local_mesh)
    batch = max(shards, batch // shards * shards)
    encoder = _Encoder(self, kind, requested, batch) if requested else None
    decoded = batches.parallel(read, requested, self.data.workers)
    results = zip(requested, decoded, strict=True)
    for paths, frames in progress(results, len(requested)):
      if isinstance(frames, Exception):
        bad |= {item: str(frames) for item in unique if item.paths == paths}
      elif encoder:
        encoder.add(paths, frames)
    if encoder:
      encoder.flush()
    reasons = hosts.gather({unique.index(item): reason for item, reason in bad.items()})
    return {unique[int(i)]: why for host in reasons for i, why in host.items()}

  def _missing(
    self, items: Sequence[video.Video], kind: str
  ) -> tuple[dict[Paths, set[video.Video]], dict[video.Video, str]]:
    """Finds what this host has to encode.

    Returns:
      By the paths of a video, its samples whose features are not stored; and the
      samples whose files cannot be opened, with the reason.
    """
    videos = list(dict.fromkeys(item.paths for item in items))
    own = set(videos[jax.process_index() :: jax.process_count()])
    store = self.tokens if kind == 'tokens' else self.patches
    missing: dict[Paths, set[video.Video]] = {paths: set() for paths in videos}
    keys: dict[video.Video, str] = {}
    bad: dict[video.Video, str] = {}
    for item in items:
      target = item if kind == 'tokens' else video.Video(item.paths)
      try:
        keys[target] = self.key(target)
      except OSError as error:
        bad[item] = f'{error.filename}: {error.strerror}'
        continue
      # A host looks up its own part only: shared storage may cache the answer "no such
      # file" while another host writes it.
      if item.paths in own and keys[target] not in store:
        missing[item.paths].add(target)
    hosts.agree({'videos (their paths, sizes and times)': lambda: list(keys.values())})
    return {paths: targets for paths, targets in missing.items() if targets}, bad


class _Encoder:
  """Encodes videos a batch at a time and stores their features.

  Args:
    requested: the samples to store, by the paths of their video.
    batch: videos at a time.
  """

  def __init__(
    self,
    features: VisualFeatures,
    kind: str,
    requested: dict[Paths, set[video.Video]],
    batch: int,
  ):
    self.features, self.kind, self.requested = features, kind, requested
    self.batch = batch
    self.params = features.load()
    self.run_tower, self.run_projector = programs(
      features.model, features.local_mesh, self.params
    )
    self.waiting: list[tuple[Paths, np.ndarray]] = []

  def add(self, paths: Paths, frames: np.ndarray) -> None:
    """Adds a video, `uint8[F, S, S, 3]`; encodes when the batch is full."""
    self.waiting.append((paths, frames))
    if len(self.waiting) == self.batch:
      self.flush()

  def flush(self) -> None:
    """Encodes and stores the videos that wait."""
    if not self.waiting:
      return
    stacked = np.stack([frames for _, frames in self.waiting])
    missing = self.batch - len(stacked)
    stacked = np.pad(stacked, ((0, missing), *((0, 0),) * 4), mode='edge')
    count, frames = stacked.shape[:2]
    flat = jax.device_put(
      stacked.reshape(-1, *stacked.shape[2:]),
      sharding.by_batch(self.features.local_mesh),
    )
    patches = self.run_tower(self.params, flat)
    patches = patches.reshape(count, frames, *patches.shape[1:])
    videos = [paths for paths, _ in self.waiting]
    if self.kind == 'patches':
      for paths, value in zip(videos, np.asarray(patches), strict=False):
        self.features.patches.write(self.features.key(video.Video(paths)), value)
    else:
      self._write_tokens(videos, patches)
    self.waiting.clear()

  def _write_tokens(self, videos: list[Paths], patches: jax.Array) -> None:
    """Projects and stores every clip of the videos. patches: `[B, F, P, C]`."""
    clips = {item.clip for paths in videos for item in self.requested[paths]}
    for clip in sorted(clips, key=lambda c: c or (-1, -1)):
      part = patches[:, slice(*clip)] if clip else patches
      tokens = np.asarray(self.run_projector(self.params, jnp.asarray(part)))
      for paths, value in zip(videos, tokens, strict=False):
        item = video.Video(paths, clip)
        if item in self.requested[paths]:
          self.features.tokens.write(self.features.key(item), value)
