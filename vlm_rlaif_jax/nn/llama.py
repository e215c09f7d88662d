"""The LLaMA decoder (Touvron et al. 2023) on embeddings, its layers scanned.

The cache is an argument, never a mutable collection. Inside the layer scan it is only
read; new keys and values are returned stacked, `[L, B, G, T, K]`, and the caller writes
them once (`inference/sampler.py`). Scanning the cache in and out with the layers would
copy all of it every step. Each layer takes its first slots out of the stack in one
slice, which XLA reads in place; of a scanned layer, TPUs would read all slots first.
"""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as named

from vlm_rlaif_jax.core.quant.product import Layer, Leaf
from vlm_rlaif_jax.core.sharding import constrain
from vlm_rlaif_jax.nn import attention, layers, packed
from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig


class Block(nn.Module):
  """One pre-norm decoder layer."""

  cfg: LlamaConfig
  lora: LoraConfig | None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    mask: jax.Array | packed.Rows,
    past: attention.Past | None,
    stacks: dict[str, Leaf],
    layer: jax.Array,
  ) -> tuple[jax.Array, attention.KeysValues | None]:
    """Applies attention and the MLP.

    Args:
      x: `[B, T, D]`.
      rotation: `attention.rotations` of the positions.
      mask: `bool[B, T, S + T]`, causal; or the lengths of packed rows, with S = 0.
      past: None, or the cached keys and values of all layers, each of
        `[L, B, G, S, K]` or with more slots, which are not read, maybe in 8 bits; S may
        be 0.
      stacks: by name, the 4-bit weights of all layers, stacked.
      layer: `int32[]`, the index of this layer in `stacks` and `past`.

    Returns:
      x and, if `past` is given, the new keys and values `[B, G, T, K]`.
    """
    cfg = self.cfg

    def linear(name: str, features: int, inp: str, out: str):
      lora = self.lora if self.lora and name in self.lora.targets else None
      stacked_weight = Layer(stacks[name], layer) if name in stacks else None
      module = layers.Linear(features, (inp, out), lora=lora, name=name)
      return lambda h, inner=None: module(h, stacked_weight, inner)

    is_packed = isinstance(mask, packed.Rows)
    order = 'b t h k' if is_packed else 'b h t k'

    def joined(h: jax.Array, *names: str) -> dict[str, jax.Array]:
      # Where rows are packed (GPUs), one product with all A of h reads h once.
      return self._inner(h, names) if is_packed else {}

    def heads(name: str, count: int, axis: str, h: jax.Array) -> jax.Array:
      y = linear(name, count * cfg.head_dim, 'embed', axis)(h, inner.get(name))
      return einops.rearrange(y, f'b t (h k) -> {order}', h=count)

    def rope(x: jax.Array) -> jax.Array:
      return attention.rope(x, rotation, 2 if is_packed else 1)

    h = layers.RmsNorm(cfg.eps, name='attn_norm')(x)
    inner = joined(h, 'q', 'k', 'v')
    q = rope(heads('q', cfg.heads, 'heads', h))
    k = rope(heads('k', cfg.kv_heads, 'kv_heads', h))
    v = heads('v', cfg.kv_heads, 'kv_heads', h)
    q, k, v = (named(part, name) for part, name in zip((q, k, v), 'qkv', strict=True))
    if is_packed:
      h = packed.attend(q, k, v, mask)
      k, v = (jnp.swapaxes(part, 1, 2) for part in (k, v))
    else:
      if past is not None:
        past = _first_slots(past, layer, mask.shape[2] - x.shape[1])
      h = attention.attend(q, k, v, mask, past, causal=True)
    h = einops.rearrange(h, f'{order} -> b t (h k)')
    x = named(x + linear('o', cfg.width, 'heads', 'embed')(h), 'between')
    h = layers.RmsNorm(cfg.eps, name='mlp_norm')(x)
    inner = joined(h, 'gate', 'up')
    gate, up = (
      named(linear(name, cfg.mlp, 'embed', 'mlp')(h, inner.get(name)), name)
      for name in ('gate', 'up')
    )
    x = x + linear('down', cfg.width, 'mlp', 'embed')(nn.silu(gate) * up)
    x = constrain(x, 'batch', 'length', 'stream')
    return x, None if past is None else (k, v)

  def _inner(self, h: jax.Array, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns by name h Aᵀ, `[B, T, rank]`, of adapters that read the same h."""
    adapters = self.variables.get('lora', {})
    names = tuple(name for name in names if name in adapters)
    drops = self.lora is not None and self.lora.dropout and self.has_rng('dropout')
    if len(names) < 2 or drops:  # each adapter drops inputs of its own
      return {}
    a = jnp.concatenate([adapters[name]['a'] for name in names]).astype(h.dtype)
    inner = jnp.einsum('bti,ri->btr', h, a)
    return dict(zip(names, jnp.split(inner, len(names), -1), strict=True))


def _first_slots(past: attention.Past, layer: jax.Array, slots: int) -> attention.Past:
  """Returns a layer's first slots, `[B, G, slots, K]` each, of `[L, B, G, S, K]`."""

  def read(stack: jax.Array) -> jax.Array:  # scales of 8 bits have no K
    first = layer, *(jnp.zeros_like(layer),) * (stack.ndim - 1)
    size = 1, *stack.shape[1:3], slots, *stack.shape[4:]
    return jax.lax.dynamic_slice(stack, first, size)[0]

  return jax.tree.map(read, past)


class Llama(nn.Module):
  """Maps embeddings to hidden states after the final norm.

  The vocabulary head is a method of its own (`logits`).
  """

  cfg: LlamaConfig
  lora: LoraConfig | None = None
  remat: str = 'none'

  def setup(self):
    cfg = self.cfg
    self.tokens = layers.Weight((cfg.vocab, cfg.width), ('vocab', 'embed'))
    self.final_norm = layers.RmsNorm(cfg.eps)
    self.head = layers.Linear(cfg.vocab, ('embed', 'vocab'), float32=True)

  def embed(self, ids: jax.Array) -> jax.Array:
    """Looks up embeddings, `int32[B, T]` -> `[B, T, D]`.

    Ids outside the vocabulary (the video slot) give the nearest row.
    """
    return jnp.take(self.tokens(), ids, axis=0, mode='clip')

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Applies the vocabulary head, `[..., D]` -> `float32[..., V]`."""
    return self.head(hidden)

  def _packed(self) -> dict[str, Leaf]:
    """Returns the stacked 4-bit weights of the layers by name.

    The kernel of decoding reads one layer in place; a weight that the scan slices would
    be copied for it.
    """
    stacked = self.variables.get('params', {}).get('layers', {})
    weights = {name: part.get('w') for name, part in stacked.items()}
    return {name: w for name, w in weights.items() if isinstance(w, Leaf)}

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array | packed.Rows,
    past: attention.Past | None = None,
  ) -> tuple[jax.Array, attention.KeysValues | None]:
    """Runs all layers on embeddings.

    Args:
      x: `[B, T, D]`.
      positions: `int32[B, T]`.
      mask: `bool[B, T, S + T]`, causal; or the lengths of packed rows, with S = 0.
      past: None, or cached keys and values, each `[L, B, G, S, K]` or with more slots,
        which are not read; S = 0 to prefill.

    Returns:
      hidden states `[B, T, D]` and, if `past` is given, the new keys and values,
      `[L, B, G, T, K]`.
    """
    x = constrain(x, 'batch', 'length', 'stream')
    stacks = self._packed()
    stacked: Any = layers.stack(
      Block,
      self.cfg.layers,
      (nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
      remat=self.remat,
      # Unrolled layers would each copy what they read of a cache, and unpacking 4-bit
      # weights takes long to compile.
      unroll=past is None and not stacks,
    )
    cfg, decoder = self.cfg, stacked(self.cfg, self.lora, name='layers')
    rotation = attention.rotations(positions, cfg.head_dim, cfg.rope_theta, x.dtype)
    in_place = {} if past is None else stacks
    x, new = decoder(x, rotation, mask, past, in_place, jnp.arange(cfg.layers))
    return self.final_norm(x), new
