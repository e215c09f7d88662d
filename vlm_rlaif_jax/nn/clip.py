"""CLIP (Radford et al. 2021).

The vision tower feeds the projector; the text tower is for the pretraining of the tiny
base and for retrieval. Both are pre-LN transformers with quick-GELU. Weights have names
of our own; `weights.names` maps those of the released checkpoints.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import attention, layers, packed
from vlm_rlaif_jax.settings.models import ClipTextConfig, ClipVisionConfig


class ClipBlock(nn.Module):
  """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  heads: int
  mlp: int
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
    """Applies the layer.

    Args:
      x: `[B, T, C]`.
      mask: `bool[B, T, T]`, true where a position attends; None: everywhere.

    Returns:
      x, and None for the scan over layers.
    """
    width = x.shape[-1]

    def linear(name: str, features: int, inp: str, out: str) -> layers.Linear:
      return layers.Linear(features, (inp, out), bias=True, name=name)

    h = layers.LayerNorm(self.eps, name='attn_norm')(x)
    size = width // self.heads
    fused = mask is None and packed.implementation(x.dtype, size) is not None
    order = 'b t h k' if fused else 'b h t k'
    q, k, v = (
      einops.rearrange(
        linear(name, width, 'vision', 'vision_heads')(h),
        f'b t (h k) -> {order}',
        h=self.heads,
      )
      for name in 'qkv'
    )
    h = packed.attend(q, k, v) if fused else attention.attend(q, k, v, mask)
    h = einops.rearrange(h, f'{order} -> b t (h k)')
    x = x + linear('o', width, 'vision_heads', 'vision')(h)
    h = layers.LayerNorm(self.eps, name='mlp_norm')(x)
    h = layers.quick_gelu(linear('up', self.mlp, 'vision', 'vision_mlp')(h))
    return x + linear('down', width, 'vision_mlp', 'vision')(h), None


class ClipVision(nn.Module):
  """Maps pixels to patch features, or to one embedding in the joint space.

  The blocks up to the feature layer are `layers`; the others, which only the joint
  embedding needs, are `tail`: a checkpoint without them still serves the projector.
  """

  cfg: ClipVisionConfig
  joint: int

  def setup(self):
    cfg = self.cfg
    shared = {'heads': cfg.heads, 'mlp': cfg.mlp, 'eps': cfg.eps}
    tail = -cfg.feature_layer - 1
    self.patch = layers.Linear(cfg.width, ('pixels', 'vision'))
    self.pre_norm = layers.LayerNorm(cfg.eps)
    self.layers = layers.stack(ClipBlock, cfg.layers - tail, nn.broadcast)(**shared)
    self.tail = layers.stack(ClipBlock, tail, nn.broadcast)(**shared)
    self.post_norm = layers.LayerNorm(cfg.eps)
    self.projection = layers.Linear(self.joint, ('vision', 'joint'))
    self.class_embedding = layers.Weight((cfg.width,), ('vision',))
    self.positions = layers.Weight((cfg.patches + 1, cfg.width), (None, 'vision'))

  def _hidden(self, pixels: jax.Array) -> jax.Array:
    """Returns the hidden states of the feature layer, `[B, 1 + P, C]`."""
    p = self.cfg.patch_size
    patches = einops.rearrange(
      pixels, 'b (h p) (w q) c -> b (h w) (c p q)', p=p, q=p
    )  # channel, row, column: the order of a convolution's kernel [out, c, p, q]
    x = self.patch(patches)
    first = jnp.broadcast_to(
      self.class_embedding().astype(x.dtype), (x.shape[0], 1, x.shape[-1])
    )
    x = jnp.concatenate([first, x], axis=1) + self.positions().astype(x.dtype)[None]
    x, _ = self.layers(self.pre_norm(x), None)
    return x

  def features(self, pixels: jax.Array) -> jax.Array:
    """Encodes pixels `[B, S, S, 3]` to patch features `[B, P, C]`, no class token."""
    return self._hidden(pixels)[:, 1:]

  def embed(self, pixels: jax.Array) -> jax.Array:
    """Encodes pixels `[B, S, S, 3]` to embeddings `[B, joint]`, not normalized."""
    x, _ = self.tail(self._hidden(pixels), None)
    return self.projection(self.post_norm(x[:, 0]))

  def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.features(pixels), self.embed(pixels)


class ClipText(nn.Module):
  """Maps token ids to one embedding in the joint space."""

  cfg: ClipTextConfig
  joint: int

  def setup(self):
    cfg = self.cfg
    self.tokens = layers.Weight((cfg.vocab, cfg.width), ('vocab', 'vision'))
    self.positions = layers.Weight((cfg.context, cfg.width), (None, 'vision'))
    self.layers = layers.stack(ClipBlock, cfg.layers, nn.broadcast)(
      heads=cfg.heads, mlp=cfg.mlp, eps=cfg.eps
    )
    self.post_norm = layers.LayerNorm(cfg.eps)
    self.projection = layers.Linear(self.joint, ('vision', 'joint'))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Encodes texts to embeddings `[B, joint]`, not normalized.

    Args:
      ids: `int32[B, T]`, T at most `cfg.context`; each row contains `cfg.eos_id`.
    """
    length = ids.shape[1]
    x = jnp.take(self.tokens(), ids, axis=0) + self.positions()[None, :length]
    mask = attention.causal_mask(jnp.ones(ids.shape, bool))
    x, _ = self.layers(x, mask)
    end = jnp.argmax(ids == self.cfg.eos_id, axis=1)  # the first end-of-text token
    x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return self.projection(self.post_norm(x))


class Clip(nn.Module):
  """Both towers and the temperature, for contrastive training."""

  vision_cfg: ClipVisionConfig
  text_cfg: ClipTextConfig
  joint: int

  def setup(self):
    self.vision = ClipVision(self.vision_cfg, self.joint)
    self.text = ClipText(self.text_cfg, self.joint)
    self.logit_scale = layers.Weight((), (), nn.initializers.constant(2.6592))

  def __call__(self, pixels: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns cosine similarities of pictures and texts, scaled, `[B, B']`."""
    image, text = self.vision.embed(pixels), self.text(ids)
    image, text = (
      e / jnp.linalg.norm(e, axis=-1, keepdims=True) for e in (image, text)
    )
    return jnp.exp(self.logit_scale()) * image @ text.T
