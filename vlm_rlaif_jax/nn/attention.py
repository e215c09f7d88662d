"""Attention over new keys and a cache, and rotary positions."""

import functools

import einops
import jax
import jax.numpy as jnp

PARTS, STEP = 4, 128  # of the queries of causal attention: at most, and a multiple of


MASKED = -1e30  # finite, so that a row that sees nothing stays finite too


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


def rope(x, rotation, heads_axis: int = 1):
  """Rotary positions in the rotate-half convention (Su et al. 2021, as in LLaMA).

  Args:
    x: `[B, H, T, K]`, or `[B, T, H, K]` with heads_axis 2; the first half of K is
      paired with the second.
    rotation: `rotations` of the positions.
  """
  half = x.shape[-1] // 2
  cos, sin = (jnp.expand_dims(table, heads_axis) for table in rotation)
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
    out = _softmax_av(grouped, k, v, mask)
  else:
    out = _softmax_av_over_cache(grouped, k, v, mask, past)
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


def _softmax_av_over_cache(q, k, v, mask, past):
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
def _softmax_av(q, k, v, mask):
  return _softmax_av_forward(q, k, v, mask)[0]


def _softmax_av_forward(q, k, v, mask):
  score = _scores(q, k, mask)
  weight = jnp.exp(score - jnp.max(score, -1, keepdims=True))
  total = jnp.sum(weight, -1, keepdims=True)
  weight = weight.astype(v.dtype)
  out = (_sums(weight, v) / total).astype(v.dtype)
  return out, (q, k, v, mask, weight, total, out)


def _softmax_av_backward(kept, g):
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
  to_keys = functools.partial(
    jax.lax.platform_dependent, cpu=_kv_grad_cpu, default=_kv_grad
  )
  found = _sums(ds, k), to_keys(q, ds), to_keys(unit, weight)
  return *(x.astype(kind) for x, kind in zip(found, kinds, strict=True)), None


def _kv_grad(x, weight):
  """`[B, G, R, T, K]`, `[B, G, R, T, S]` -> `[B, G, S, K]`."""
  return jnp.einsum('bgrtk,bgrts->bgsk', x, weight, preferred_element_type=jnp.float32)


def _kv_grad_cpu(x, weight):
  """`_by_key` as (Xᵀ W)ᵀ: otherwise XLA for CPUs copies all of W transposed. XLA for
  GPUs would fuse the turning into the products that follow, and find no tiles for it.
  """
  y = jnp.einsum('bgrtk,bgrts->bgks', x, weight, preferred_element_type=jnp.float32)
  return jnp.swapaxes(jax.lax.optimization_barrier(y), -1, -2)


_softmax_av.defvjp(_softmax_av_forward, _softmax_av_backward)


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
