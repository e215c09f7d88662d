"""Attention over new keys and a cache, with rotary position embeddings."""

import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import cache_int8
from vlm_rlaif_jax.nn.cache_int8 import Int8

KeysValues = tuple[jax.Array, jax.Array]
Past = tuple[jax.Array | Int8, jax.Array | Int8]


MAX_PARTS = 4  # into which the queries of causal attention are split
PART_MULTIPLE = 128  # the length of a part is a multiple of it
MASKED = -1e30  # finite, so that a row whose keys are all masked stays finite too


def rotations(
  positions: jax.Array, size: int, theta: float, dtype: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns cosines and sines of rotary positions, each `[B, T, size / 2]`.

  They are computed in float32 and rounded to `dtype`.

  Args:
    positions: `int32[B, T]`.
    size: width K of a head.
    theta: base of the frequencies.
  """
  half = size // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = jnp.einsum('bt,k->btk', positions.astype(jnp.float32), frequency)
  return _unfused(jnp.cos(angle)).astype(dtype), _unfused(jnp.sin(angle)).astype(dtype)


def _unfused(table: jax.Array) -> jax.Array:
  """Returns the table times the identity matrix, which changes no bit.

  XLA does not fuse the product into its users. Without it, XLA for CPUs computes the
  tables again for every head and layer.
  """
  identity = jnp.eye(table.shape[-1])
  return jnp.einsum('btk,kj->btj', table, identity, precision='highest')


def rope(
  x: jax.Array, rotation: tuple[jax.Array, jax.Array], heads_axis: int = 1
) -> jax.Array:
  """Rotates queries or keys by their positions.

  The convention is rotate-half (Su et al. 2021, as in LLaMA): the first half of K is
  paired with the second.

  Args:
    x: `[B, H, T, K]`, or `[B, T, H, K]` with heads_axis 2.
    rotation: `rotations` of the positions.
  """
  half = x.shape[-1] // 2
  cos, sin = (jnp.expand_dims(table, heads_axis) for table in rotation)
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None = None,
  past: Past | None = None,
  causal: bool = False,
) -> jax.Array:
  """Computes softmax(q kᵀ / sqrt(K)) v with a float32 softmax; Vaswani et al. 2017.

  The cache is read, never concatenated with the new keys, which would copy all of it.
  The division by the softmax's denominator comes after the product with v, on T x K
  numbers instead of T x S.

            past keys S         new keys T
    query 0 [ 0 1 1 1 1 1 0 0 | 1 0 0 ]       0: left pads, and slots still empty
    query 1 [ 0 1 1 1 1 1 0 0 | 1 1 0 ]

  Args:
    q: `[B, H, T, K]`.
    k, v: `[B, G, T, K]`, G dividing H; each key head serves H / G query heads.
    mask: `bool[B, T, S + T]`, true where a query attends to a key; None: everywhere.
    past: None, or the cached (keys, values), each `[B, G, S, K]`, maybe in 8 bits.
    causal: whether the mask hides the new keys after each query's own. If so, queries
      are processed in parts, each with the keys up to its last query.

  Returns:
    `[B, H, T, K]`.
  """
  if past is not None and past[0].shape[2] == 0:
    past = None
  length = q.shape[2]
  parts = []
  for start, stop in _parts(length) if causal else [(0, length)]:
    mask_slice = mask
    if mask is not None:
      mask_slice = mask[:, start:stop, : mask.shape[2] - length + stop]
    parts.append(
      _attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask_slice, past)
    )
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _parts(length: int) -> list[tuple[int, int]]:
  """Returns (start, stop) of each part of the queries.

  Short queries stay whole: the masked keys that parts save are then too few to pay for
  another product.
  """
  step = -(-length // (MAX_PARTS * PART_MULTIPLE)) * PART_MULTIPLE
  if length <= MAX_PARTS * PART_MULTIPLE:
    return [(0, length)]
  return [(start, min(start + step, length)) for start in range(0, length, step)]


def _attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  past: Past | None,
) -> jax.Array:
  grouped = einops.rearrange(q, 'b (g r) t k -> b g r t k', g=k.shape[1])
  if past is None:
    out = _softmax_av(grouped, k, v, mask)
  else:
    out = _softmax_av_over_cache(grouped, k, v, mask, past)
  return einops.rearrange(out, 'b g r t k -> b (g r) t k')


def _scores(q: jax.Array, k: jax.Array | Int8, mask: jax.Array | None) -> jax.Array:
  """Returns q kᵀ / sqrt(K), masked.

  `[B, G, R, T, K]`, `[B, G, S, K]` -> `float32[B, G, R, T, S]`, R = H / G.
  """
  codes = cache_int8.numbers(k, q.dtype)
  score = jnp.einsum('bgrtk,bgsk->bgrts', q, codes, preferred_element_type=jnp.float32)
  score = score * q.shape[-1] ** -0.5
  if isinstance(k, Int8):
    score = score * k.scale[:, :, None, None]
  return score if mask is None else jnp.where(mask[:, None, None], score, MASKED)


def _weighted_sum(weight: jax.Array, v: jax.Array) -> jax.Array:
  """`[B, G, R, T, S]`, `[B, G, S, K]` -> `float32[B, G, R, T, K]`."""
  return jnp.einsum(
    'bgrts,bgsk->bgrtk',
    weight.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )


def _softmax_av_over_cache(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, past: Past
) -> jax.Array:
  """Computes one softmax over the cached keys and the new ones.

  Beside a cache in 8 bits the new ones are rounded, too, as they are about to be held:
  samplers that write before they read see the same numbers.
  """
  slots, cached = past[0].shape[2], past[1]
  if isinstance(cached, Int8):
    k, v = cache_int8.rounded(k), cache_int8.rounded(v)
  masks = (None, None) if mask is None else (mask[..., :slots], mask[..., slots:])
  scores = [_scores(q, keys, m) for keys, m in zip((past[0], k), masks, strict=True)]
  top = functools.reduce(jnp.maximum, [jnp.max(s, -1, keepdims=True) for s in scores])
  weights = [jnp.exp(score - top) for score in scores]
  totals = [jnp.sum(w, -1, keepdims=True) for w in weights]
  if isinstance(cached, Int8):
    weights[0] = weights[0] * cached.scale[:, :, None, None]
  cached = cache_int8.numbers(cached, v.dtype)
  sums = [_weighted_sum(w, x) for w, x in zip(weights, (cached, v), strict=True)]
  return ((sums[0] + sums[1]) / (totals[0] + totals[1])).astype(v.dtype)


@jax.custom_vjp
def _softmax_av(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> jax.Array:
  """softmax(q kᵀ / sqrt(K)) v over the new keys, with a gradient of its own."""
  return _softmax_av_forward(q, k, v, mask)[0]


def _softmax_av_forward(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
):
  score = _scores(q, k, mask)
  weight = jnp.exp(score - jnp.max(score, -1, keepdims=True))
  total = jnp.sum(weight, -1, keepdims=True)
  weight = weight.astype(v.dtype)
  out = (_weighted_sum(weight, v) / total).astype(v.dtype)
  return out, (q, k, v, mask, weight, total, out)


def _softmax_av_backward(residuals: tuple, g: jax.Array):
  """Returns the gradients of q, k and v.

    U = G / n   dV = Wᵀ U   dS = W ∘ (U Vᵀ - rows(G ∘ O) / n) / sqrt(K)   dQ = dS K

  W are the weights before the division by their sum n, O is the result and G its
  gradient. Products are in the dtype of q, as in the forward pass; in float32 if that
  is float16.
  """
  q, k, v, mask, weight, total, out = residuals
  dtypes = q.dtype, k.dtype, v.dtype
  if v.dtype == jnp.float16:  # G / n would come close to its smallest number
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
  to_keys = functools.partial(
    jax.lax.platform_dependent, cpu=_kv_grad_cpu, default=_kv_grad
  )
  grads = _weighted_sum(ds, k), to_keys(q, ds), to_keys(unit, weight)
  return *(x.astype(dtype) for x, dtype in zip(grads, dtypes, strict=True)), None


def _kv_grad(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns Wᵀ X summed over the queries of a key head.

  `[B, G, R, T, K]`, `[B, G, R, T, S]` -> `float32[B, G, S, K]`.
  """
  return jnp.einsum('bgrtk,bgrts->bgsk', x, weight, preferred_element_type=jnp.float32)


def _kv_grad_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Computes `_kv_grad` as (Xᵀ W)ᵀ, for CPUs.

  Otherwise XLA for CPUs copies all of W transposed. On GPUs, XLA would fuse this
  transposition into the products that follow, for which it has no tiling.
  """
  y = jnp.einsum('bgrtk,bgrts->bgks', x, weight, preferred_element_type=jnp.float32)
  return jnp.swapaxes(jax.lax.optimization_barrier(y), -1, -2)


_softmax_av.defvjp(_softmax_av_forward, _softmax_av_backward)


def causal_mask(valid: jax.Array) -> jax.Array:
  """Returns `bool[B, T, T]`, true where query t attends to key s.

  valid = 0 1 1 1   ->   0 0 0 0      no query attends to a left pad; the pad's own row
                         0 1 0 0      is all false and stays finite (see MASKED)
                         0 1 1 0
                         0 1 1 1

  Args:
    valid: `bool[B, T]`, true at real tokens.
  """
  length = valid.shape[-1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  return causal[None] & valid[:, None, :]
