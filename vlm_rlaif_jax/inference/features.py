"""What the frozen parts see of each video, computed once and kept in a store."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import batches, image, video
from vlm_rlaif_jax.data.feature_store import FeatureStore, video_key
from vlm_rlaif_jax.nn import layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig

Progress = Callable[[Sequence, int], object]


def programs(model: Vlm, mesh, params):
  """Frames `uint8[B, S, S, 3]` -> patch features, and those -> visual tokens.

  Args:
    params: `tower` and `projector`, arrays or shapes with a layout.
  """
  rows, layout = sharding.by_batch(mesh), sharding.layout_of(params)
  return tuple(
    sharding.Program(name, function, mesh, (layout, rows), rows)
    for name, function in (
      ('see', lambda p, x: vlm.see(model, p, normalize(x))),
      ('project', lambda p, x: vlm.project(model, p, x)),
    )
  )


def normalize(frames):
  """`image.normalize` on a device, to its rounding: a fourth of the bytes go there."""
  row = lambda x: layers.expand_to_last_axis(jnp.asarray(x), frames)
  return (frames.astype(jnp.float32) / 255 - row(image.MEAN)) / row(image.STD)


class VisualFeatures:
  """Features of videos by sample, computed on demand of a whole list.

  Args:
    model: the network; load: puts `tower` and `projector` on the devices of this host,
      where they stay only while videos are encoded.
    fingerprint: of those weights.
    data: root, frame sampling and policy for bad videos are taken from it.
    folder: of all feature stores.
    mesh: of the run; each of its devices encodes videos of its own, with whole weights.
  """

  def __init__(
    self, model: Vlm, load, fingerprint: str, data: DataConfig, folder, mesh
  ):
    self.model, self.data, self.mesh = model, data, mesh
    self.local = sharding.data_mesh(mesh.local_devices)
    self.load = load
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
    if item not in self._keys:
      self._keys[item] = video_key(item, self.data.root)
    return self._keys[item]

  def read(self, what: str, item: video.Video) -> np.ndarray:
    """'patches': `[F, P, C]`, cut to the sample's clip; 'tokens': `[F + P, D]`."""
    if what == 'tokens':
      return self.tokens.read(self.key(item))
    whole = self.patches.read(self.key(video.Video(item.paths)))
    return whole[slice(*item.clip)] if item.clip else whole

  def blank(self, what: str, frames: int) -> np.ndarray:
    """Zeros in place of the features of a sample that has no video."""
    vision, llama = self.model.cfg.vision, self.model.cfg.llama
    if what == 'tokens':
      return np.zeros((frames + vision.patches, llama.width), self.tokens.dtype)
    return np.zeros((frames, vision.patches, vision.width), self.patches.dtype)

  def encode(
    self,
    items: Sequence[video.Video],
    what: str,
    progress: Progress = lambda items, total: items,
    batch: int = 16,
  ) -> dict[video.Video, str]:
    """Makes sure that every item can be read; returns the reasons of those that cannot.

    Hosts share the videos out, each on its own devices.

    Args:
      what: 'patches' (the projector still trains) or 'tokens' (it is frozen too).
    """
    bad: dict[video.Video, str] = {}
    wanted: dict[tuple[str, ...], set[video.Video]] = {}
    known = list(dict.fromkeys(items))
    videos = list(dict.fromkeys(item.paths for item in known))
    mine = set(videos[jax.process_index() :: jax.process_count()])
    keys = {}
    for item in known:
      whole = video.Video(item.paths)
      target = item if what == 'tokens' else whole
      try:
        keys[target] = self.key(target)
      except OSError as error:
        bad[item] = f'{error.filename}: {error.strerror}'
        continue
      # Nobody looks for what another host is about to write: storage remembers misses.
      if item.paths in mine and keys[target] not in getattr(self, what):
        wanted.setdefault(item.paths, set()).add(target)
    hosts.agree({'videos (their paths, sizes and times)': lambda: list(keys.values())})
    todo = [paths for paths in videos if paths in wanted]

    def read(paths):
      try:
        frames = video.read_frames(video.Video(paths), self.data.root, self.data.frames)
        size = self.model.cfg.vision.image_size
        return image.squares(frames, size, self.data.aspect)
      except video.VideoError as error:
        return error

    shards = sharding.batch_shards(self.local)
    batch = max(shards, batch // shards * shards)
    waiting: list[tuple[tuple[str, ...], np.ndarray]] = []
    run = self._programs() if todo else None
    results = zip(todo, batches.parallel(read, todo, self.data.workers), strict=True)
    for paths, pixels in progress(results, len(todo)):  # type: ignore[arg-type]
      if isinstance(pixels, Exception):
        bad |= {item: str(pixels) for item in items if item.paths == paths}
        continue
      waiting.append((paths, pixels))
      if len(waiting) == batch:
        self._flush(run, waiting, batch, wanted, what)
    self._flush(run, waiting, batch, wanted, what)
    said = hosts.gather({known.index(item): reason for item, reason in bad.items()})
    return {known[int(i)]: why for host in said for i, why in host.items()}

  def _programs(self) -> tuple[Callable, Callable]:
    params = self.load()
    see, project = programs(self.model, self.local, params)
    return functools.partial(see, params), functools.partial(project, params)

  def _flush(self, run, waiting, batch: int, wanted, what: str) -> None:
    if not waiting:
      return
    see, project = run
    pixels = np.stack([x for _, x in waiting])
    pixels = np.pad(pixels, ((0, batch - len(pixels)), *((0, 0),) * 4), mode='edge')
    count, frames = pixels.shape[:2]
    flat = jax.device_put(
      pixels.reshape(-1, *pixels.shape[2:]), sharding.by_batch(self.local)
    )
    seen = see(flat)
    seen = seen.reshape(count, frames, *seen.shape[1:])
    if what == 'patches':
      for (paths, _), value in zip(waiting, np.asarray(seen), strict=False):
        self.patches.write(self.key(video.Video(paths)), value)
    else:
      clips = {item.clip for paths, _ in waiting for item in wanted[paths]}
      for clip in sorted(clips, key=lambda c: c or (-1, -1)):
        part = seen[:, slice(*clip)] if clip else seen
        tokens = np.asarray(project(jnp.asarray(part)))
        for (paths, _), value in zip(waiting, tokens, strict=False):
          item = video.Video(paths, clip)
          if item in wanted[paths]:
            self.tokens.write(self.key(item), value)
    waiting.clear()
