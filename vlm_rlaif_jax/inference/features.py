"""Visual features of videos, computed once by frozen networks and stored on disk."""

import contextlib
import dataclasses
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import batches, video, video_keys
from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.feature_store import EntryError, FeatureStore
from vlm_rlaif_jax.inference.encoder import Encoder, Paths
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import DataConfig

Progress = Callable[[Any, int], Iterable]

VIDEOS = 16  # encoded at a time
NAMING_THREADS = 16  # of the contents of videos; on a network, waiting is most of it
LARGE = 1e9  # bytes to be written that a run speaks of


class VisualFeatures:
  """Features of videos by sample; a list of videos is encoded at once.

  Args:
    model: the network.
    load: puts `tower` and `projector` on the devices of this host, where they stay only
      while videos are encoded.
    fingerprints: of the weights of `tower` and of `projector`. Networks of any size
      that share a tower share its patch features.
    data: root, frame sampling, number and deadline of decoders are taken from it.
    folder: where all feature stores are.
    mesh: of the run; each of its devices encodes different videos, with all weights.
    say: prints a line.
  """

  def __init__(
    self,
    model: Vlm,
    load: Callable[[], Any],
    fingerprints: Mapping[str, str],
    data: DataConfig,
    folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
    say: Callable[[str], None] = print,
  ):
    self.model, self.load, self.data, self.mesh = model, load, data, mesh
    self.folder, self.say = folder, say
    self.local_mesh = sharding.data_mesh(mesh.local_devices)
    cfg = model.cfg
    patches = {
      'what': 'patches',
      'weights': fingerprints['tower'],
      'vision': dataclasses.asdict(cfg.vision),
      'frames': data.frames,
      'aspect': data.aspect,
      'computed_in': cfg.dtype,
    }
    tokens = {
      **patches,
      'what': 'tokens',
      'projector': cfg.projector,
      'projector_weights': fingerprints['projector'],
    }
    dtype = 'float16' if cfg.dtype == 'float32' else cfg.dtype
    self.stores = {
      'patches': FeatureStore(folder, patches, dtype),
      'tokens': FeatureStore(folder, tokens, dtype),
    }
    self.index = video_keys.VideoIndex(data.root, folder, jax.process_index())
    self._contents: dict[Paths, str] = {}
    self._repairs = threading.Lock()

  def key(self, item: video.Video) -> str:
    """Returns the key of a sample's features in a store."""
    if item.paths not in self._contents:
      self._contents[item.paths] = self.index.contents(item.paths)
    return video_keys.sample_key(self._contents[item.paths], item.clip)

  @property
  def contents(self) -> dict[Paths, str]:
    """Returns the digest of the contents of each video so far, by its paths."""
    return dict(self._contents)

  def shape(self, kind: str, frames: int) -> tuple[int, ...]:
    """Returns the shape of the features of so many frames."""
    vision, llama = self.model.cfg.vision, self.model.cfg.llama
    if kind == 'tokens':
      return frames + vision.patches, llama.width
    return frames, vision.patches, vision.width

  def read(self, kind: str, item: video.Video) -> np.ndarray:
    """Returns stored features of a sample, cut to its clip; computes bad ones again.

    Args:
      kind: 'patches' for `[F, P, C]`, 'tokens' for `[F + P, D]`.

    Raises:
      VideoError: they have to be computed again, and the video cannot be read any more.
    """
    target = self.stored_item(kind, item)
    try:
      features = self.stored(kind, target)
    except EntryError as error:
      features = self._repair(kind, target, error)
    return features[slice(*item.clip)] if item.clip and kind == 'patches' else features

  def _repair(self, kind: str, target: video.Video, problem: EntryError) -> np.ndarray:
    """Computes stored features again and returns them.

    A host does so by itself, while the others wait for it in the next batch.
    """
    with self._repairs:
      self.say(f'features: {problem}; computing them again')
      for reason in _encode_requests([(self, {target.paths: {target}})], kind).values():
        raise video.VideoError(reason) from None
    return self.stored(kind, target)

  def stored(self, kind: str, target: video.Video) -> np.ndarray:
    """Returns the features of a `stored_item`; raises EntryError if there are none."""
    shape = self.shape(kind, target.frames(self.data.frames))
    return self.stores[kind].read(self.key(target), shape)

  def stored_item(self, kind: str, item: video.Video) -> video.Video:
    """Returns the sample whose features are stored: patches are of whole videos."""
    return item if kind == 'tokens' else video.Video(item.paths)

  def blank(self, kind: str, frames: int) -> np.ndarray:
    """Returns zeros in place of the features of a sample that has no video."""
    return np.zeros(self.shape(kind, frames), self.stores[kind].dtype)

  def encode(
    self,
    items: Sequence[video.Video],
    kind: str,
    progress: Progress = lambda videos, total: videos,
    batch: int = VIDEOS,
  ) -> dict[video.Video, str]:
    """Encodes every video that is not in the store yet.

    Hosts divide the videos among them, and each encodes its part on its own devices.
    Where a bad sample stops the run, nothing is encoded after the first.

    Args:
      kind: 'patches' (while the projector trains) or 'tokens' (once it is frozen).
      progress: wraps the videos of this host; the second argument is how many.
      batch: videos at a time, over the devices of this host.

    Returns:
      The videos that cannot be read, and why.
    """
    return encode_all([self], items, kind, progress, batch)

  def _name(self, videos: list[Paths]) -> dict[Paths, str]:
    """Finds the keys of videos; hosts divide them among them, and then know all.

    Returns:
      The videos whose files cannot be read, and why.
    """
    hosts.agree({'videos (their paths)': lambda: videos})
    self.index.load()  # another network's features may have named them since
    unnamed = [paths for paths in videos if paths not in self._contents]
    part = slice(jax.process_index(), None, jax.process_count())

    def contents(paths: Paths) -> tuple[str, str]:
      try:
        return self.index.contents(paths), ''
      except video.VideoError as error:
        return '', str(error)

    results = list(batches.parallel(contents, unnamed[part], NAMING_THREADS))
    bad = {}
    for first, host in enumerate(hosts.gather(results)):
      for paths, (digest, reason) in zip(
        unnamed[first :: jax.process_count()], host, strict=True
      ):
        if reason:
          bad[paths] = reason
        else:
          self._contents[paths] = digest
    return bad

  def _missing(
    self, items: Sequence[video.Video], kind: str
  ) -> dict[Paths, set[video.Video]]:
    """Returns what this host has to encode: by paths, what is not stored yet."""
    videos = list(dict.fromkeys(item.paths for item in items))
    # A host looks up its own part only: shared storage may cache the answer "no such
    # file" while another host writes it.
    own = set(videos[jax.process_index() :: jax.process_count()])
    missing: dict[Paths, set[video.Video]] = {}
    for item in items:
      target = self.stored_item(kind, item)
      shape = self.shape(kind, target.frames(self.data.frames))
      try:
        if item.paths not in own or self.stores[kind].has(self.key(target), shape):
          continue
      except EntryError as error:
        self.say(f'features: {error}; computing them again')
      missing.setdefault(item.paths, set()).add(target)
    return missing

  def encoder(self, requested: dict, kind: str, batch: int) -> Encoder:
    """Returns what encodes videos and stores their features; it loads the weights."""

    def write(target: video.Video, value: np.ndarray) -> None:
      self.stores[kind].write(self.key(target), value)

    pools, mesh = kind == 'tokens', self.local_mesh
    return Encoder(self.model, self.load(), mesh, requested, pools, batch, write)

  def read_patches(self, paths: Paths, kind: str) -> np.ndarray | None:
    """Returns stored patches that `kind` follows from without decoding; None: none.

    Visual tokens follow from patches, if these are stored as they were computed.
    """
    if kind == 'tokens' and self.stores['patches'].dtype.name == self.model.cfg.dtype:
      with contextlib.suppress(EntryError):
        return self.stored('patches', video.Video(paths))
    return None


Requested = dict[Paths, set[video.Video]]
Requests = Sequence[tuple[VisualFeatures, Requested]]


def encode_all(
  networks: Sequence[VisualFeatures],
  items: Sequence[video.Video],
  kind: str,
  progress: Progress = lambda videos, total: videos,
  batch: int = VIDEOS,
) -> dict[video.Video, str]:
  """Encodes videos for several networks; see `VisualFeatures.encode`.

  A video is decoded once for all networks that read pictures of one size, and each of
  them keeps its features in its own store.

  Args:
    networks: with the same data.
  """
  data, unique = networks[0].data, list(dict.fromkeys(items))
  videos = list(dict.fromkeys(item.paths for item in unique))
  bad: dict[Paths, str] = {}
  for features in networks:
    bad |= features._name(videos)
  if not (bad and data.on_bad_sample == 'stop'):
    readable = [item for item in unique if item.paths not in bad]
    requests = [(network, network._missing(readable, kind)) for network in networks]
    _check_space(requests, kind)
    sizes = dict.fromkeys(network.model.cfg.vision.image_size for network in networks)
    for size in sizes:
      same = [x for x in requests if x[0].model.cfg.vision.image_size == size]
      unreadable = _encode_requests(same, kind, progress, batch)
      for host in hosts.gather({videos.index(p): why for p, why in unreadable.items()}):
        bad |= {videos[int(number)]: why for number, why in host.items()}
      if bad and data.on_bad_sample == 'stop':
        break
  return {item: bad[item.paths] for item in unique if item.paths in bad}


def _check_space(requests: Requests, kind: str) -> None:
  """Says how much will be written, if that is much; raises UserError for too much."""
  sizes = [
    part.stores[kind].nbytes(part.shape(kind, target.frames(part.data.frames)))
    for part, requested in requests
    for targets in requested.values()
    for target in targets
  ]
  own = sum(sizes), len(sizes)
  total, count = map(sum, zip(*hosts.gather(own), strict=True))
  first = requests[0][0]

  def check() -> None:
    free = shutil.disk_usage(first.folder).free
    each = f'{total / max(count, 1) / 1e6:.1f} MB each'
    need = f'features of {count} videos or clips need {total / 1e9:.1f} GB ({each})'
    where = f'in {first.folder}, where {free / 1e9:.1f} GB are free'
    if total > free:
      raise UserError(f'{need} {where}; choose another --workdir, or make room')
    if total > LARGE:
      first.say(f'  {need} {where}')

  hosts.together(lambda: check() if hosts.is_first() else None)


def _encode_requests(
  requests: Requests,
  kind: str,
  progress: Progress = lambda videos, total: videos,
  batch: int = VIDEOS,
) -> dict[Paths, str]:
  """Encodes videos on the devices of this host, whatever other hosts do.

  Args:
    requests: networks that read pictures of one size, and what each has to encode.

  Returns:
    The videos that cannot be read, and why.
  """
  bad: dict[Paths, str] = {}
  requests = [(features, requested) for features, requested in requests if requested]
  every = list(dict.fromkeys(paths for _, requested in requests for paths in requested))
  if not every:
    return bad

  def read(paths: Paths) -> list[tuple[str, Any]] | str:
    """Returns what each encoder gets of a video, or why it cannot be read."""
    patches = [
      features.read_patches(paths, kind) if paths in requested else None
      for features, requested in requests
    ]
    frames = None
    try:
      for (_, requested), stored in zip(requests, patches, strict=True):
        if paths in requested and stored is None and frames is None:
          frames = decoders.read(paths)
    except video.VideoError as error:
      return str(error)
    return [('frames', frames) if x is None else ('patches', x) for x in patches]

  encoders = [
    features.encoder(requested, kind, batch) for features, requested in requests
  ]
  first = requests[0][0]
  size, workers = first.model.cfg.vision.image_size, first.data.workers
  with DecoderPool(first.data, size) as decoders:
    results = batches.parallel(read, every, min(workers, len(every)))
    results = zip(every, results, strict=True)
    for paths, values in progress(results, len(every)):
      if isinstance(values, str):
        bad[paths] = values
        if first.data.on_bad_sample == 'stop':
          break
        continue
      for encoder, (what, value) in zip(encoders, values, strict=True):
        if paths in encoder.requested:
          encoder.add(paths, what, value)
  for encoder in encoders:
    encoder.flush()
  return bad
