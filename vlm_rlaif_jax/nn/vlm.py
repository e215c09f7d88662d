"""The video-language model: see, splice, decode.

    text      p p 1 7 V 9 4 2      T ids; p: left pad, V: the video slot (VIDEO = -200)
    embedded  p p 1 7 v v v 9 4 2  M = T + N - 1 positions; v: the N visual tokens
    valid     0 0 1 1 1 1 1 1 1 1

Positions run 0..M-1 with the pads counted; rotary attention sees only differences.
A row without a slot (text alone) keeps its place in the batch: its N - 1 extra
positions are invisible ones at the left.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import packed
from vlm_rlaif_jax.nn.attention import causal_mask
from vlm_rlaif_jax.nn.clip import ClipVision
from vlm_rlaif_jax.nn.llama import Llama
from vlm_rlaif_jax.nn.projector import Projector, pool
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig

VIDEO = -200  # the id of the video slot


def slot_index(ids):
  """Index of the video slot in each row, `int32[B]`; -1 where there is none."""
  is_slot = ids == VIDEO
  return jnp.where(jnp.any(is_slot, 1), jnp.argmax(is_slot, 1), -1)


def embedded_index(ids, visual_tokens: int):
  """Where each text id stands after splicing: `int32[B, T]`."""
  text = jnp.arange(ids.shape[1])[None]
  after = text > slot_index(ids)[:, None]
  return jnp.where(after, text + visual_tokens - 1, text)


def splice(ids, valid, text, visual):
  """Puts the visual tokens in place of the slot.

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
  seen = position - slot  # which visual token stands here, if one does
  is_visual = (seen >= 0) & (seen < count)
  source = jnp.where(seen < 0, position, position - count + 1)
  source = jnp.clip(source, 0, ids.shape[1] - 1)
  words = jnp.take_along_axis(text, source[..., None], axis=1)
  shown = jnp.take_along_axis(visual, jnp.clip(seen, 0, count - 1)[..., None], axis=1)
  embedded = jnp.where(is_visual[..., None], shown.astype(words.dtype), words)
  word_valid = jnp.take_along_axis(valid, source, axis=1)
  return embedded, jnp.where(is_visual, slot >= 0, word_valid)


class Vlm(nn.Module):
  """CLIP -> projector -> pooling -> LLaMA. Submodules: tower, projector, llama.

  `apply` with one method needs the weights of that method only: after the visual tokens
  have been computed, neither the tower nor the projector has to be in memory.
  """

  cfg: VlmConfig
  lora: LoraConfig | None = None

  def setup(self):
    cfg = self.cfg
    self.tower = ClipVision(cfg.vision, cfg.joint)
    self.projector = Projector(cfg.llama.width, cfg.projector)
    self.llama = Llama(cfg.llama, self.lora, cfg.remat)

  def see(self, pixels):
    """Normalized pixels `[B, S, S, 3]` -> patch features `[B, P, C]`."""
    return self.tower.features(pixels.astype(self.cfg.dtype))

  def project(self, features):
    """Patch features `[B, F, P, C]` -> visual tokens `[B, F + P, D]`."""
    return pool(self.projector(features.astype(self.cfg.dtype)))

  def hidden(self, ids, valid, visual, past=None):
    """Hidden states after the final norm, `[B, M, D]`, M = T + N - 1.

    Args:
      ids: `int32[B, T]` with one video slot a row (or none).
      valid: `bool[B, T]`.
      visual: `[B, N, D]`.
      past: None, or an empty cache `[L, B, G, 0, K]` twice, to get the new keys and
        values back as well.

    Returns:
      hidden, `bool[B, M]` which positions are real, and the keys and values or None.
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
      new = tuple(jnp.take_along_axis(part, back, axis=3) for part in new)
    return packed.unpack(hidden, where, length), valid, new

  def extend(self, ids, positions, mask, past):
    """One decoding step. ids, positions: `int32[B, T]`; mask: `bool[B, T, S + T]`.

    Returns hidden states `[B, T, D]` and the new keys and values `[L, B, G, T, K]`.
    """
    x = self.llama.embed(ids).astype(self.cfg.dtype)
    return self.llama(x, positions, mask, past)

  def logits(self, hidden):
    """`[..., D]` -> `float32[..., V]`."""
    return self.llama.logits(hidden)

  def __call__(self, pixels, ids, valid):
    """Everything once, to initialize. pixels: `[B, F, S, S, 3]` -> logits."""
    frames = pixels.shape[1]
    features = self.see(pixels.reshape(-1, *pixels.shape[2:]))
    features = features.reshape(-1, frames, *features.shape[1:])
    self.tower.embed(pixels[:, 0])
    hidden, _, _ = self.hidden(ids, valid, self.project(features))
    return self.logits(hidden)


# ---------------------------------------------------------------- pure functions
#
# What the rest of the package calls. `variables` is {'params': base, 'lora': adapter};
# without 'lora' the base answers for itself.

Cache = tuple[jax.Array, jax.Array]  # keys and values, each [L, B, G, S, K]


def see(model: Vlm, params, pixels) -> jax.Array:
  """Normalized pixels `[B, S, S, 3]` -> patch features `[B, P, C]`."""
  return model.apply({'params': params}, pixels, method='see')  # type: ignore


def project(model: Vlm, params, features) -> jax.Array:
  """Patch features `[B, F, P, C]` -> visual tokens `[B, F + P, D]`."""
  return model.apply({'params': params}, features, method='project')  # type: ignore


def hidden(
  model: Vlm, variables, ids, valid, visual, past: Cache | None = None, rngs=None
) -> tuple[jax.Array, jax.Array, Cache | None]:
  """`Vlm.hidden`: states `[B, M, D]`, which positions are real, new keys and values."""
  return model.apply(  # type: ignore
    variables, ids, valid, visual, past, method='hidden', rngs=rngs
  )


def extend(model: Vlm, variables, ids, positions, mask, past: Cache):
  """`Vlm.extend`: states `[B, T, D]` and new keys and values."""
  return model.apply(variables, ids, positions, mask, past, method='extend')


def logits(model: Vlm, variables, states) -> jax.Array:
  """States `[..., D]` -> `float32[..., V]`."""
  return model.apply(variables, states, method='logits')  # type: ignore
