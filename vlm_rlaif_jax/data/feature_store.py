"""Keeps the visual features of each video on disk, computed once.

The tower, and after SFT the projector too, is frozen, so its output is a pure function
of (video, weights, frame sampling). A store holds one array a video, in a file named by
the hash of everything it depends on: a stale feature cannot be read by mistake, and any
run may share the folder.
"""

import hashlib
import json
import os
import pathlib
import uuid

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data.video import Video

VERSION = 1  # of the preprocessing; a change makes new features


class FeatureStore:
  """Arrays of one kind: `[F, P, C]` patch features, or `[N, D]` visual tokens.

  Args:
    folder: where features of every kind live.
    kind: everything but the video that a feature depends on (weights, frames, size).
    dtype: of the stored arrays; bfloat16 is stored as its bits.
  """

  def __init__(self, folder: str | pathlib.Path, kind: dict, dtype: str):
    text = json.dumps({**kind, 'dtype': dtype, 'version': VERSION}, sort_keys=True)
    self.folder = pathlib.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
    self.dtype = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    self.folder.mkdir(parents=True, exist_ok=True)
    kind_file = self.folder / 'kind.json'
    if hosts.is_first() and not kind_file.exists():
      kind_file.write_text(text)

  def path(self, key: str) -> pathlib.Path:
    """Returns the file of a key."""
    return self.folder / key[:2] / f'{key}.npy'

  def __contains__(self, key: str) -> bool:
    return self.path(key).exists()

  def read(self, key: str) -> np.ndarray:
    """Returns the array of a key."""
    stored = np.load(self.path(key))
    return stored.view(self.dtype) if stored.dtype == np.uint16 else stored

  def write(self, key: str, value: np.ndarray) -> None:
    """Writes an array so that a reader never finds half of it."""
    path = self.path(key)
    path.parent.mkdir(exist_ok=True)
    value = np.ascontiguousarray(value.astype(self.dtype))
    if self.dtype == ml_dtypes.bfloat16:
      value = value.view(np.uint16)
    part = path.with_name(f'{uuid.uuid4().hex}.part')
    with part.open('wb') as file:
      np.save(file, value)
    os.replace(part, path)


def video_key(video: Video, root: str | pathlib.Path) -> str:
  """Returns what identifies a sample's frames: paths, sizes, times, and the clip.

  A replaced file gets a new key without anybody reading the whole video again.
  """
  digest = hashlib.sha256()
  for path in video.paths:
    full = pathlib.Path(root) / path
    stat = full.stat()
    digest.update(f'{full.resolve()}:{stat.st_size}:{stat.st_mtime_ns};'.encode())
  digest.update(repr(video.clip).encode())
  return digest.hexdigest()
