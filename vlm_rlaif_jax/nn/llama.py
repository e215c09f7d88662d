"""LLaMA decoder (Touvron et al. 2023), stacked and scanned, on embeddings.

The cache is an argument and a result, never a mutable collection. Inside the layer scan
it is only read; what is new comes back stacked, `[L, B, G, T, K]`, and the caller
writes it once (`decode.py`). Scanning the cache in and out with the layers would copy
all of it every step.
"""

from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as named

from vlm_rlaif_jax.core.quant.product import Layer, Leaf
from vlm_rlaif_jax.core.sharding import constrain
from vlm_rlaif_jax.nn import attention, layers, packed
from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig


class Block(nn.Module):
  """Pre-norm decoder layer.

  x: `[B, T, D]`; rotation: `layers.rotations` of the positions; mask:
  `bool[B, T, S + T]`, causal, or `Rows` of packed ones, S zero; past: None, or the keys
  and values `[B, G, S, K]` of this layer, S possibly zero; stacks: weights in 4 bits by
  name, of all layers; number: of this one. Returns x and, where a past was given, the
  new keys and values.
  """

  cfg: LlamaConfig
  lora: LoraConfig | None

  @nn.compact
  def __call__(self, x, rotation, mask, past, stacks, number):
    cfg = self.cfg

    def linear(name, features, *axes):
      lora = self.lora if self.lora and name in self.lora.targets else None
      held = Layer(stacks[name], number) if name in stacks else None
      module = layers.Linear(features, axes, lora=lora, name=name)
      return lambda h: module(h, held)

    is_packed = isinstance(mask, packed.Rows)
    order = 'b t h k' if is_packed else 'b h t k'

    def heads(name, count, axis, h):
      y = linear(name, count * cfg.head_dim, 'embed', axis)(h)
      return einops.rearrange(y, f'b t (h k) -> {order}', h=count)

    rope = lambda x: attention.rope(x, rotation, 2 if is_packed else 1)
    h = layers.RmsNorm(cfg.eps, name='attn_norm')(x)
    q = rope(heads('q', cfg.heads, 'heads', h))
    k = rope(heads('k', cfg.kv_heads, 'kv_heads', h))
    v = heads('v', cfg.kv_heads, 'kv_heads', h)
    q, k, v = (named(part, name) for part, name in zip((q, k, v), 'qkv', strict=True))
    if is_packed:
      h = packed.attend(q, k, v, mask)
      k, v = (jnp.swapaxes(part, 1, 2) for part in (k, v))
    else:
      h = attention.attend(q, k, v, mask, past, causal=True)
    h = einops.rearrange(h, f'{order} -> b t (h k)')
    x = named(x + linear('o', cfg.width, 'heads', 'embed')(h), 'between')
    h = layers.RmsNorm(cfg.eps, name='mlp_norm')(x)
    gate = named(linear('gate', cfg.mlp, 'embed', 'mlp')(h), 'gate')
    up = named(linear('up', cfg.mlp, 'embed', 'mlp')(h), 'up')
    x = x + linear('down', cfg.width, 'mlp', 'embed')(nn.silu(gate) * up)
    x = constrain(x, 'batch', 'length', 'stream')
    return x, None if past is None else (k, v)


class Llama(nn.Module):
  """Embeddings -> hidden states after the final norm; the head is a call of its own."""

  cfg: LlamaConfig
  lora: LoraConfig | None = None
  remat: str = 'none'

  def setup(self):
    cfg = self.cfg
    self.tokens = layers.Weight((cfg.vocab, cfg.width), ('vocab', 'embed'))
    self.final_norm = layers.RmsNorm(cfg.eps)
    self.head = layers.Linear(cfg.vocab, ('embed', 'vocab'))

  def embed(self, ids):
    """`int32[B, T]` -> `[B, T, D]`; ids outside the vocabulary give the nearest row."""
    return jnp.take(self.tokens(), ids, axis=0, mode='clip')

  def logits(self, hidden):
    """`[..., D]` -> `float32[..., V]`."""
    return self.head(hidden).astype(jnp.float32)

  def _packed(self) -> dict[str, Leaf]:
    """Weights of the layers that are in 4 bits, stacked, for the kernel of decoding; to
    the scan it would have to be given copies."""
    held = self.variables.get('params', {}).get('layers', {})
    found = {name: part.get('w') for name, part in held.items()}
    return {name: w for name, w in found.items() if isinstance(w, Leaf)}

  @nn.compact
  def __call__(self, x, positions, mask, past=None):
    """`[B, T, D]` -> hidden states `[B, T, D]` and, given a past, what to add to it.

    Args:
      past: None, or keys and values, each `[L, B, G, S, K]`; S = 0 to prefill.
    """
    x = constrain(x, 'batch', 'length', 'stream')
    stacks = self._packed()
    stacked: Any = layers.stack(
      Block,
      self.cfg.layers,
      (nn.broadcast, nn.broadcast, 0, nn.broadcast, 0),
      remat=self.remat,
      # What is read of a cache would be copied; unpacking is long to compile.
      unroll=past is None and not stacks,
    )
    cfg, decoder = self.cfg, stacked(self.cfg, self.lora, name='layers')
    rotation = attention.rotations(positions, cfg.head_dim, cfg.rope_theta, x.dtype)
    whole = {} if past is None else stacks
    x, new = decoder(x, rotation, mask, past, whole, jnp.arange(cfg.layers))
    return self.final_norm(x), new
