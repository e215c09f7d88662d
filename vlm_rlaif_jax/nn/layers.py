"""Layers shared by CLIP and LLaMA: pure functions, and linen modules that name weights.

Every weight is declared once, with its shape and its logical axes; `core.sharding`
turns the axes into a layout. Collections hold the roles: `params` is the pretrained
base, `lora` the adapter, and the caller of `apply` chooses the adapter by the tree it
passes.
"""

import functools
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.config.models import LoraConfig
from vlm_rlaif_jax.core.quant.product import Layer, Leaf, product

FEW_LAYERS = 4
PARTS, STEP = 4, 128  # of the queries of causal attention: at most, and a multiple of
MASKED = -1e30  # finite, so that a row that sees nothing stays finite too

normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


# ---------------------------------------------------------------- functions


def linear(x, kernel, adapter=None, *, scale=1.0, adapter_x=None, inp=None):
  """y = x Wᵀ + scale (x Aᵀ) Bᵀ  (LoRA: Hu et al. 2021, eq. 3).

  Args:
    x: `[..., in]`.
    kernel: W, `[out, in]`: an array, or one in 4 bits (`core.quant`), which has no
      gradient.
    adapter: None, or (A `[rank, in]`, B `[out, rank]`).
    scale: alpha / rank.
    adapter_x: what the adapter sees in place of x (x after dropout).
    inp: logical name of the input axis, by which a weight in 4 bits is split.

  Returns:
    `[..., out]` in the dtype of x.
  """
  if isinstance(kernel, Leaf | Layer):
    y = product(x, kernel, inp)
  else:
    y = jnp.einsum('...i,oi->...o', x, kernel.astype(x.dtype))
  if adapter is None:
    return y
  a, b = (leaf.astype(x.dtype) for leaf in adapter)
  inner = jnp.einsum('...i,ri->...r', x if adapter_x is None else adapter_x, a)
  return y + _expand(inner * jnp.asarray(scale, x.dtype), b)


@jax.custom_vjp
def _expand(inner, b):
  """`[..., rank]`, B `[out, rank]` -> `[..., out]`.

  The gradient of B is taken as (innerᵀ g)ᵀ. As gᵀ inner, which is what JAX makes of it,
  XLA on a CPU copies all of g transposed, out / rank times as much.
  """
  return jnp.einsum('...r,or->...o', inner, b)


def _expand_backward(kept, g):
  inner, b = kept
  turned = jnp.einsum('...r,...o->ro', inner, g)
  turned = jax.lax.optimization_barrier(turned)  # or XLA turns the product back
  return jnp.einsum('...o,or->...r', g, b), turned.T


_expand.defvjp(lambda inner, b: (_expand(inner, b), (inner, b)), _expand_backward)


def last(vector, x):
  """`[D]` -> `[1, ..., D]`: broadcast along the last axis of x, said aloud."""
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def rms_norm(x, scale, eps: float):
  """x / rms(x) * scale, in float32; Zhang and Sennrich 2019."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  return (y * last(scale, x).astype(jnp.float32)).astype(x.dtype)


def layer_norm(x, scale, bias, eps: float):
  """(x - mean) / std * scale + bias, in float32."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, -1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  y = y * last(scale, x).astype(jnp.float32) + last(bias, x).astype(jnp.float32)
  return y.astype(x.dtype)


def quick_gelu(x):
  """x sigmoid(1.702 x), as CLIP was trained."""
  return x * jax.nn.sigmoid(1.702 * x)


def rotations(positions, size: int, theta: float, dtype):
  """Cosines and sines of rotary positions, each `[B, T, size / 2]`.

  They are computed in float32 and rounded to `dtype`.

  Args:
    positions: `int32[B, T]`.
    size: of a head.
  """
  half = size // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = jnp.einsum('bt,k->btk', positions.astype(jnp.float32), frequency)
  # A product with the identity changes no bit, and XLA does not fuse it: on CPUs the
  # tables were computed anew for every head and layer.
  same = lambda x: jnp.einsum('btk,kj->btj', x, jnp.eye(half), precision='highest')
  return same(jnp.cos(angle)).astype(dtype), same(jnp.sin(angle)).astype(dtype)


def rope(x, rotation):
  """Rotary positions in the rotate-half convention (Su et al. 2021, as in LLaMA).

  Args:
    x: `[B, H, T, K]`; the first half of K is paired with the second.
    rotation: `rotations` of the positions.
  """
  half = x.shape[-1] // 2
  cos, sin = (table[:, None] for table in rotation)
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def attend(q, k, v, mask=None, past=None, causal: bool = False):
  """softmax(q kᵀ / sqrt(K)) v with a float32 softmax; Vaswani et al. 2017.

  The past is read, never joined to the new keys: a join would copy the whole cache. The
  division by the softmax's denominator comes after the product with v, on T x K numbers
  instead of T x S.

            past keys S         new keys T
    query 0 [ 0 1 1 1 1 1 0 0 | 1 0 0 ]       0: left pads, and slots still empty
    query 1 [ 0 1 1 1 1 1 0 0 | 1 1 0 ]

  Args:
    q: `[B, H, T, K]`.
    k, v: `[B, G, T, K]`, G dividing H; each key head serves H / G query heads.
    mask: `bool[B, T, S + T]`, true where a query sees a key; None: sees all.
    past: None, or (keys, values), each `[B, G, S, K]`.
    causal: the mask hides the new keys after each query's own. Queries are then taken
      in parts, each beside the keys up to its last one.

  Returns:
    `[B, H, T, K]`.
  """
  if past is not None and past[0].shape[2] == 0:
    past = None
  length = q.shape[2]
  parts = []
  for start, stop in _parts(length) if causal else [(0, length)]:
    seen = mask
    if mask is not None:
      seen = mask[:, start:stop, : mask.shape[2] - length + stop]
    part = _attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], seen, past)
    parts.append(part)
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _parts(length: int) -> list[tuple[int, int]]:
  """Of long queries: with few keys, what is left out is not worth another product."""
  step = -(-length // (PARTS * STEP)) * STEP
  if length <= PARTS * STEP:
    return [(0, length)]
  return [(start, min(start + step, length)) for start in range(0, length, step)]


def _attend(q, k, v, mask, past):
  grouped = einops.rearrange(q, 'b (g r) t k -> b g r t k', g=k.shape[1])
  if past is None:
    out = _mixed(grouped, k, v, mask)
  else:
    out = _mixed_over_past(grouped, k, v, mask, past)
  return einops.rearrange(out, 'b g r t k -> b (g r) t k')


def _scores(q, k, mask):
  """`[B, G, R, T, K]`, `[B, G, S, K]` -> `float32[B, G, R, T, S]`."""
  score = jnp.einsum('bgrtk,bgsk->bgrts', q, k, preferred_element_type=jnp.float32)
  score = score * q.shape[-1] ** -0.5
  return score if mask is None else jnp.where(mask[:, None, None], score, MASKED)


def _sums(weight, v):
  return jnp.einsum(
    'bgrts,bgsk->bgrtk',
    weight.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )


def _mixed_over_past(q, k, v, mask, past):
  """Softmax over keys that stand in two places."""
  slots = past[0].shape[2]
  masks = (None, None) if mask is None else (mask[..., :slots], mask[..., slots:])
  scores = [_scores(q, keys, m) for keys, m in zip((past[0], k), masks, strict=True)]
  top = functools.reduce(jnp.maximum, [jnp.max(s, -1, keepdims=True) for s in scores])
  weights = [jnp.exp(score - top) for score in scores]
  totals = [jnp.sum(w, -1, keepdims=True) for w in weights]
  sums = [_sums(w, x) for w, x in zip(weights, (past[1], v), strict=True)]
  return ((sums[0] + sums[1]) / (totals[0] + totals[1])).astype(v.dtype)


@jax.custom_vjp
def _mixed(q, k, v, mask):
  return _mixed_forward(q, k, v, mask)[0]


def _mixed_forward(q, k, v, mask):
  score = _scores(q, k, mask)
  weight = jnp.exp(score - jnp.max(score, -1, keepdims=True))
  total = jnp.sum(weight, -1, keepdims=True)
  weight = weight.astype(v.dtype)
  out = (_sums(weight, v) / total).astype(v.dtype)
  return out, (q, k, v, mask, weight, total, out)


def _mixed_backward(kept, g):
  """W: weights before they are divided by their sum n, O the result, G its gradient.

    U = G / n   dV = Wᵀ U   dS = W ∘ (U Vᵀ - rows(G ∘ O) / n) / sqrt(K)   dQ = dS K

  Products take the dtype of q, as those forward do, but for float16: float32.
  """
  q, k, v, mask, weight, total, out = kept
  kinds = q.dtype, k.dtype, v.dtype
  if v.dtype == jnp.float16:  # whose least number is not far below G / n
    q, k, v, weight = (x.astype(jnp.float32) for x in (q, k, v, weight))
  scale = q.shape[-1] ** -0.5
  g = g.astype(jnp.float32)
  mean = jnp.sum(g * out.astype(jnp.float32), -1, keepdims=True) / total
  unit = (g / total).astype(v.dtype)
  dw = jnp.einsum('bgrtk,bgsk->bgrts', unit, v, preferred_element_type=jnp.float32)
  ds = weight.astype(jnp.float32) * (dw - mean) * scale
  if mask is not None:
    ds = jnp.where(mask[:, None, None], ds, 0.0)
  ds = ds.astype(q.dtype)
  to_keys = functools.partial(jax.lax.platform_dependent, cpu=_turned, default=_by_key)
  found = _sums(ds, k), to_keys(q, ds), to_keys(unit, weight)
  return *(x.astype(kind) for x, kind in zip(found, kinds, strict=True)), None


def _by_key(x, weight):
  """`[B, G, R, T, K]`, `[B, G, R, T, S]` -> `[B, G, S, K]`."""
  return jnp.einsum('bgrtk,bgrts->bgsk', x, weight, preferred_element_type=jnp.float32)


def _turned(x, weight):
  """`_by_key` as (Xᵀ W)ᵀ: otherwise XLA for CPUs copies all of W transposed. XLA for
  GPUs would fuse the turning into the products that follow, and find no tiles for it.
  """
  y = jnp.einsum('bgrtk,bgrts->bgks', x, weight, preferred_element_type=jnp.float32)
  return jnp.swapaxes(jax.lax.optimization_barrier(y), -1, -2)


_mixed.defvjp(_mixed_forward, _mixed_backward)


def causal_mask(valid):
  """`bool[B, T]` (true: a real token) -> `bool[B, T, T]`, true where query t sees key
  s.

  valid = 0 1 1 1   ->   0 0 0 0      a left pad is never seen; its own row sees nothing
                         0 1 0 0      and stays finite (see MASKED)
                         0 1 1 0
                         0 1 1 1
  """
  length = valid.shape[-1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  return causal[None] & valid[:, None, :]


# ---------------------------------------------------------------- modules


def declare(
  module: nn.Module, name: str, shape, axes, init, collection='params'
) -> Any:
  """A weight with logical axes; returns its value (an array or a quantised leaf).

  `variable` rather than `param`, which would refuse a leaf that is not one array.
  """

  def boxed():
    value = init(module.make_rng('params'), shape, jnp.float32)
    return nn.LogicallyPartitioned(value, axes)

  return module.variable(collection, name, boxed).value


class Linear(nn.Module):
  """`linear` with named weights: W `[out, in]`, A `[rank, in]`, B `[out, rank]`.

  A starts uniform in ±1/sqrt(in) and B at zero, as in peft. Dropout acts on the
  adapter's input, and only when the caller passes a `dropout` key.
  """

  features: int
  axes: tuple[str, str]  # logical names of the input and of the output
  bias: bool = False
  lora: LoraConfig | None = None
  init: Callable = normal

  @nn.compact
  def __call__(self, x, held: Layer | None = None):
    """held: the weight that is declared here, where it stands in the stack of all."""
    inp, out = self.axes
    fan_in = x.shape[-1]
    kernel = declare(self, 'w', (self.features, fan_in), (out, inp), self.init)
    kernel = kernel if held is None else held
    adapter, scale, adapter_x = None, 1.0, None
    if self.lora is not None and (
      self.is_initializing() or self.has_variable('lora', 'a')
    ):
      rank = self.lora.rank
      uniform = lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5
      )
      a = declare(self, 'a', (rank, fan_in), ('rank', inp), uniform, 'lora')
      b = declare(self, 'b', (self.features, rank), (out, 'rank'), zeros, 'lora')
      adapter, scale = (a, b), self.lora.alpha / rank
      if self.lora.dropout and self.has_rng('dropout'):
        adapter_x = nn.Dropout(self.lora.dropout, deterministic=False)(x)
    y = linear(x, kernel, adapter, scale=scale, adapter_x=adapter_x, inp=inp)
    if self.bias:
      bias = declare(self, 'bias', (self.features,), (out,), zeros)
      y = y + last(bias, y).astype(y.dtype)
    return y


class Weight(nn.Module):
  """One named array: an embedding table, a class token, a temperature."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Callable = normal

  @nn.compact
  def __call__(self):
    return declare(self, 'w', self.shape, self.axes, self.init)


class RmsNorm(nn.Module):
  eps: float
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x):
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
  eps: float
  axis: str = 'vision'

  @nn.compact
  def __call__(self, x):
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    bias = declare(self, 'bias', x.shape[-1:], (self.axis,), zeros)
    return layer_norm(x, scale, bias, self.eps)


def stack(block, length: int, in_axes, *, remat: str = 'none', unroll: bool = False):
  """`length` copies of a block as one scanned module; weights get a leading layer axis.

  Args:
    block: a linen class whose call is `(x, *args) -> (x, kept)`.
    in_axes: for each of args, `nn.broadcast` or the axis that runs over layers.
    remat: 'none' keeps all activations, 'dots' the products without batch dimension,
      'full' only the block's input.
    unroll: no loop over few layers: it would cost more in stacking what the gradient
      needs than it saves in compilation.
  """
  if remat != 'none':
    policy = {
      'full': jax.checkpoint_policies.nothing_saveable,
      'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[remat]
    block = nn.remat(block, policy=policy, prevent_cse=False)
  return nn.scan(
    block,
    length=length,
    unroll=length if unroll and length <= FEW_LAYERS else 1,
    variable_axes={'params': 0, 'lora': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=in_axes,
    metadata_params={nn.PARTITION_NAME: 'layer'},
  )
