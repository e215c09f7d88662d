"""Texts to unit vectors of CLIP's joint space, in batches of few shapes.

A text that is longer than the tower's context is cut into sentences (`text_tokens`):
its vector is the mean of their unit vectors, normalized again. That of a sentence of
several windows is the mean of theirs, likewise.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, tokens
from vlm_rlaif_jax.data.text_tokens import TextTokenizer
from vlm_rlaif_jax.nn.clip import ClipText
from vlm_rlaif_jax.settings.models import ClipTextConfig

Windows = Sequence[Sequence[tuple[int, ...]]]  # of a text, by sentence


class EncodedTexts(NamedTuple):
  """Unit vectors `float32[N, D]`, and which texts exceed the context, `bool[N]`."""

  vectors: np.ndarray
  is_long: np.ndarray

  @property
  def long_share(self) -> float:
    """Returns the share of texts over the limit; 0 where there are none."""
    return float(np.mean(self.is_long)) if len(self.is_long) else 0.0


def encode_ids(model: ClipText, params: Any, ids: jax.Array) -> jax.Array:
  """Returns the unit vectors of texts, `float32[B, D]`.

  Args:
    ids: `int32[B, T]`, each row up to its end-of-text token; what follows is not read.
  """
  with jax.default_matmul_precision('float32'):
    embedded = model.apply({'params': params}, ids)
  return embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)  # type: ignore


class TextEncoder:
  """Encodes texts by a text tower; each distinct text once, however often it is asked.

  Args:
    cfg, joint, params, tokenizer: of the tower, see `weights.text_towers`.
    mesh: its devices encode different texts; every host has all vectors.
    batch: texts at a time, over all devices.
  """

  def __init__(
    self,
    cfg: ClipTextConfig,
    joint: int,
    params: Any,
    tokenizer: TextTokenizer,
    mesh: jax.sharding.Mesh,
    batch: int = 256,
  ):
    self.cfg, self.joint, self.tokenizer, self.mesh = cfg, joint, tokenizer, mesh
    shards = sharding.batch_shards(mesh)
    self.batch = max(shards, batch // shards * shards)
    # The context, a half and a fourth of it, the end included.
    self.lengths = sorted({-(-cfg.context // parts) for parts in (4, 2, 1)})
    self.params = sharding.put(params, sharding.replicated(mesh))
    self.program = text_program(cfg, joint, mesh)
    self._vectors: dict[str, tuple[np.ndarray, bool]] = {}

  def __call__(self, texts: Sequence[str]) -> EncodedTexts:
    """Returns the vectors of texts; under several hosts all of them must call it."""
    self._encode([text for text in dict.fromkeys(texts) if text not in self._vectors])
    vectors = np.zeros((len(texts), self.joint), np.float32)
    is_long = np.zeros(len(texts), bool)
    for row, text in enumerate(texts):
      vectors[row], is_long[row] = self._vectors[text]
    return EncodedTexts(vectors, is_long)

  def _encode(self, texts: Sequence[str]) -> None:
    """Keeps the vectors of texts that have none."""
    windows = {text: self.tokenizer.windows(text, self.cfg.context) for text in texts}
    distinct = {
      ids for sentences in windows.values() for part in sentences for ids in part
    }
    encoded = self._encode_windows(sorted(distinct, key=lambda ids: (len(ids), ids)))
    for text, sentences in windows.items():
      parts = [_unit_mean(encoded[ids] for ids in part) for part in sentences]
      is_long = self.tokenizer.is_long(text, self.cfg.context)
      self._vectors[text] = _unit_mean(parts), is_long

  def _encode_windows(
    self, windows: Sequence[tuple[int, ...]]
  ) -> dict[tuple[int, ...], np.ndarray]:
    """Returns the unit vector of each window; windows are sorted by length."""
    encoded: dict[tuple[int, ...], np.ndarray] = {}
    for first in range(0, len(windows), self.batch):
      part = windows[first : first + self.batch]
      length = batches.bucket(len(part[-1]), self.lengths)
      ids = tokens.pad(part, length, 'right', self.tokenizer.end)
      ids = np.pad(ids, ((0, self.batch - len(part)), (0, 0)), mode='edge')
      ids = sharding.put(ids.astype(np.int32), sharding.by_batch(self.mesh))
      vectors = sharding.to_host(self.program(self.params, ids))
      encoded |= dict(zip(part, np.asarray(vectors), strict=False))
    return encoded


def text_program(
  cfg: ClipTextConfig, joint: int, mesh: jax.sharding.Mesh
) -> sharding.Program:
  """Returns the program that maps ids `int32[B, T]` to unit vectors `[B, joint]`."""
  model, rows = ClipText(cfg, joint), sharding.by_batch(mesh)

  def encode_texts(params: Any, ids: jax.Array) -> jax.Array:
    return encode_ids(model, params, ids)

  inputs = (sharding.replicated(mesh), rows)
  return sharding.Program('encode_texts', encode_texts, mesh, inputs, rows)


def _unit_mean(vectors: Iterable[np.ndarray]) -> np.ndarray:
  """Returns the mean of unit vectors as a unit vector; a single one as it is."""
  parts = list(vectors)
  if len(parts) == 1:
    return parts[0]
  mean = np.mean(parts, axis=0, dtype=np.float64)
  length = np.linalg.norm(mean)
  return np.asarray(mean / length if length else parts[0], np.float32)
