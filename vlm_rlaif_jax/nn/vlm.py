"""The video-language model: encode frames, splice visual tokens into text, decode.

    text      p p 1 7 V 9 4 2      T ids; p: left pad, V: the video slot (VIDEO = -200)
    embedded  p p 1 7 v v v 9 4 2  M = T + N - 1 positions; v: the N visual tokens
    valid     0 0 1 1 1 1 1 1 1 1

Positions are 0 .. M-1, pads included; rotary attention depends on differences only. A
row without a slot (text only) stays in the batch: its N - 1 extra positions are masked
ones at the left.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import packed
from vlm_rlaif_jax.nn.attention import KeysValues, Past, causal_mask
from vlm_rlaif_jax.nn.clip import ClipVision
from vlm_rlaif_jax.nn.llama import Llama
from vlm_rlaif_jax.nn.projector import Projector, pool
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig

Cache = Past  # keys and values, each [L, B, G, S, K]


def slot_index(ids: jax.Array) -> jax.Array:
  """Returns the index of each row's video slot, `int32[B]`; -1 if there is none."""
  is_slot = ids == VIDEO
  return jnp.where(jnp.any(is_slot, 1), jnp.argmax(is_slot, 1), -1)


def embedded_index(ids: jax.Array, visual_tokens: int) -> jax.Array:
  """Returns the position of each text id after splicing, `int32[B, T]`."""
  text = jnp.arange(ids.shape[1])[None]
  after = text > slot_index(ids)[:, None]
  return jnp.where(after, text + visual_tokens - 1, text)


def splice(
  ids: jax.Array, valid: jax.Array, text: jax.Array, visual: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Replaces the video slot by the visual tokens.

  Args:
    ids: `int32[B, T]`, at most one VIDEO a row.
    valid: `bool[B, T]`, true at real tokens.
    text: `[B, T, D]`, embeddings of ids.
    visual: `[B, N, D]`.

  Returns:
    embeddings `[B, T + N - 1, D]`, valid `bool[B, T + N - 1]`.
  """
  count = visual.shape[1]
  slot = slot_index(ids)[:, None]
  position = jnp.arange(ids.shape[1] + count - 1)[None]
  offset = position - slot  # index of the visual token at a visual position
  is_visual = (offset >= 0) & (offset < count)
  source = jnp.where(offset < 0, position, position - count + 1)
  source = jnp.clip(source, 0, ids.shape[1] - 1)
  words = jnp.take_along_axis(text, source[..., None], axis=1)
  index = jnp.clip(offset, 0, count - 1)[..., None]
  pictures = jnp.take_along_axis(visual, index, axis=1)
  embedded = jnp.where(is_visual[..., None], pictures.astype(words.dtype), words)
  word_valid = jnp.take_along_axis(valid, source, axis=1)
  return embedded, jnp.where(is_visual, slot >= 0, word_valid)


class Vlm(nn.Module):
  """CLIP -> projector -> pooling -> LLaMA; submodules `tower`, `projector`, `llama`.

  `apply` needs the weights of the called method only: once the visual tokens have been
  computed, neither the tower nor the projector has to be in memory.
  """

  cfg: VlmConfig
  lora: LoraConfig | None = None

  def setup(self):
    cfg = self.cfg
    self.tower = ClipVision(cfg.vision, cfg.joint)
    self.projector = Projector(cfg.llama.width, cfg.projector)
    self.llama = Llama(cfg.llama, self.lora, cfg.remat)

  def patch_features(self, pixels: jax.Array) -> jax.Array:
    """Encodes normalized pixels, `[B, S, S, 3]` -> patch features `[B, P, C]`."""
    return self.tower.features(pixels.astype(self.cfg.dtype))

  def project(self, features: jax.Array) -> jax.Array:
    """Projects and pools patch features, `[B, F, P, C]` -> `[B, F + P, D]`."""
    return pool(self.projector(features.astype(self.cfg.dtype)))

  def hidden(
    self,
    ids: jax.Array,
    valid: jax.Array,
    visual: jax.Array,
    past: Cache | None = None,
  ) -> tuple[jax.Array, jax.Array, KeysValues | None]:
    """Returns hidden states after the final norm, M = T + N - 1.

    Args:
      ids: `int32[B, T]` with at most one video slot a row.
      valid: `bool[B, T]`, false at pads.
      visual: `[B, N, D]`, visual tokens.
      past: None, or an empty cache (S = 0), to get the new keys and values as well.

    Returns:
      hidden states `[B, M, D]`; `bool[B, M]`, true at real positions; and the new keys
      and values, or None.
    """
    text = self.llama.embed(ids).astype(self.cfg.dtype)
    x, valid = splice(ids, valid, text, visual)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    if packed.implementation(x.dtype, self.cfg.llama.head_dim) is None:
      hidden, new = self.llama(x, positions, causal_mask(valid), past)
      return hidden, valid, new
    length, where = x.shape[1], packed.packing(valid)
    x, positions = packed.pack(x, where), packed.pack(positions, where)
    hidden, new = self.llama(x, positions, where.rows, past)
    if new is not None:
      back = where.inverse[None, :, None, :length, None]
      keys, values = (jnp.take_along_axis(part, back, axis=3) for part in new)
      new = keys, values
    return packed.unpack(hidden, where, length), valid, new

  def extend(
    self, ids: jax.Array, positions: jax.Array, mask: jax.Array, past: Cache
  ) -> Any:
    """Runs the decoder on further tokens.

    Args:
      ids, positions: `int32[B, T]`.
      mask: `bool[B, T, S + T]`, true where a token attends.
      past: cached keys and values; slots after the first S are not read.

    Returns:
      hidden states `[B, T, D]` and the new keys and values `[L, B, G, T, K]`.
    """
    x = self.llama.embed(ids).astype(self.cfg.dtype)
    return self.llama(x, positions, mask, past)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Applies the vocabulary head, `[..., D]` -> `float32[..., V]`."""
    return self.llama.logits(hidden)

  def __call__(self, pixels: jax.Array, ids: jax.Array, valid: jax.Array) -> jax.Array:
    """Runs every submodule once, to initialize. pixels: `[B, F, S, S, 3]`."""
    frames = pixels.shape[1]
    features = self.patch_features(pixels.reshape(-1, *pixels.shape[2:]))
    features = features.reshape(-1, frames, *features.shape[1:])
    self.tower.embed(pixels[:, 0])
    hidden, _, _ = self.hidden(ids, valid, self.project(features))
    return self.logits(hidden)


# ---------------------------------------------------------------- pure functions
#
# The rest of the package calls these. `variables` is {'params': base, 'lora': adapter};
# without 'lora' it is the base alone.


def patch_features(model: Vlm, params: Any, pixels: jax.Array) -> jax.Array:
  """Encodes normalized pixels, `[B, S, S, 3]` -> patch features `[B, P, C]`."""
  return model.apply({'params': params}, pixels, method='patch_features')  # type: ignore


def project(model: Vlm, params: Any, features: jax.Array) -> jax.Array:
  """Projects and pools patch features, `[B, F, P, C]` -> `[B, F + P, D]`."""
  return model.apply({'params': params}, features, method='project')  # type: ignore


def hidden(
  model: Vlm,
  variables: Any,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  past: Cache | None = None,
  rngs: dict[str, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, KeysValues | None]:
  """Returns hidden states, the mask of real positions, and new keys and values.

  See `Vlm.hidden`.

  Args:
    rngs: `{'dropout': key}` in training.
  """
  return model.apply(  # type: ignore
    variables, ids, valid, visual, past, method='hidden', rngs=rngs
  )


def extend(
  model: Vlm,
  variables: Any,
  ids: jax.Array,
  positions: jax.Array,
  mask: jax.Array,
  past: Cache,
) -> Any:
  """Returns hidden states of further tokens and their keys and values.

  See `Vlm.extend`.
  """
  return model.apply(variables, ids, positions, mask, past, method='extend')


def logits(model: Vlm, variables: Any, states: jax.Array) -> jax.Array:
  """Applies the vocabulary head, `[..., D]` -> `float32[..., V]`."""
  return model.apply(variables, states, method='logits')  # type: ignore
