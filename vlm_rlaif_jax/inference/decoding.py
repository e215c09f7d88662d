"""Samples answers on GPUs without a scan over layers, from a cache of arrays a layer.

    decoder_weights.prepare   (base, adapter) -> Weights, once a rollout
    sample                    prompts -> answers, with the draws of `sampler.sample`
    answer                    both, for a batch of prompts

In a scan over layers, XLA copies every layer's weights out of their stack before the
product, and starts the loop's body 32 times a token; without the scan, a step is one
graph of about ten kernels a layer. Where the scan is the better program (see
`decoder_weights.applies`), or where weights are split over devices, `sampler.sample`
does all the work.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference import decoder_weights, sampler
from vlm_rlaif_jax.inference.decoder_weights import DecoderLayer, Weights
from vlm_rlaif_jax.inference.sampler import Answers, Sampling
from vlm_rlaif_jax.nn import attention, cache, cache_int8, layers, packed, vlm
from vlm_rlaif_jax.nn.cache_int8 import Int8
from vlm_rlaif_jax.nn.vlm import Vlm

Past = tuple[attention.Past, ...]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sample(
  model: Vlm,
  weights: Weights | dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  keys: jax.Array,
  settings: Sampling,
) -> Answers:
  """Draws one or more answers a prompt, as `sampler.sample` does.

  Args:
    weights: as `decoder_weights.prepare` returns them.
    ids, valid, visual, keys: as in `sampler.sample`.
  """
  if not isinstance(weights, Weights):
    return sampler.sample(model, weights, ids, valid, visual, keys, settings)
  copies = keys.shape[0] // ids.shape[0]
  with jax.named_scope('rollout/prefill'):
    hidden, valid, past = _prefill(model, weights, ids, valid, visual, copies, settings)
  length = valid.shape[1]
  start = jnp.where(jnp.any(valid, 1), jnp.argmax(valid, 1), length).astype(jnp.int32)

  def extend(
    token: jax.Array, number: jax.Array, past: Past, finished: jax.Array
  ) -> tuple[jax.Array, Past]:
    position = length + number
    stop = jnp.where(finished, 0, position + 1).astype(jnp.int32)
    return step(model, weights, token, position, start, stop, past)

  def logits_of(hidden: jax.Array) -> jax.Array:
    return vlm.logits(model, {'params': weights.rest}, hidden)

  with jax.named_scope('rollout/decode'):
    return _decode(hidden, past, logits_of, extend, keys, settings)


def answer(
  model: Vlm,
  variables: dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  keys: jax.Array,
  settings: Sampling,
) -> Answers:
  """Draws answers as `sampler.sample` does, from a copy of the layers where it fits.

  The copy takes as long as some four tokens.

  Args:
    variables: `{'params': base, 'lora': adapter}`, or the base alone.
    ids, valid, visual, keys: as in `sampler.sample`.
  """
  copies_layers = decoder_weights.affords_copy(variables)
  weights = decoder_weights.prepare(model, variables, 'beside', copies_layers)
  return sample(model, weights, ids, valid, visual, keys, settings)


@flax.struct.dataclass
class _State:
  """State of the loop over tokens: see `sampler.DecodeState`."""

  step: jax.Array
  hidden: jax.Array
  past: Past
  finished: jax.Array
  answers: Answers


def _decode(
  hidden: jax.Array,
  past: Past,
  logits_of: Callable[[jax.Array], jax.Array],
  extend: Callable[..., tuple[jax.Array, Past]],
  keys: jax.Array,
  settings: Sampling,
) -> Answers:
  """Draws tokens until every row has ended.

  Args:
    hidden: `[B, D]`, of the last token of each prompt.
    past: the cache, with room for `max_tokens` more.
    logits_of: hidden states -> `float32[B, V]`.
    extend: (tokens `int32[B]`, number of the step, past, finished rows `bool[B]`) ->
      hidden states of the tokens, and the past with them.
    keys: `[B]`.
  """
  batch, limit = hidden.shape[0], settings.max_tokens
  answers = Answers(
    tokens=jnp.full((batch, limit), settings.pad, jnp.int32),
    logprobs=jnp.zeros((batch, limit), jnp.float32),
    mask=jnp.zeros((batch, limit), bool),
  )

  def unfinished(state: _State) -> jax.Array:
    return (state.step < limit) & ~jnp.all(state.finished)

  def advance(state: _State) -> _State:
    def put(all_steps: jax.Array, x: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_index_in_dim(all_steps, x, state.step, axis=1)

    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys)
    token, logprob = sampler.draw(step_keys, logits_of(state.hidden), settings)
    token = jnp.where(state.finished, settings.pad, token)
    answers = Answers(
      tokens=put(state.answers.tokens, token),
      logprobs=put(state.answers.logprobs, jnp.where(state.finished, 0.0, logprob)),
      mask=put(state.answers.mask, ~state.finished),
    )
    hidden, past = extend(token, state.step, state.past, state.finished)
    finished = state.finished | settings.is_end(token)
    return _State(state.step + 1, hidden, past, finished, answers)

  state = _State(jnp.int32(0), hidden, past, jnp.zeros(batch, bool), answers)
  return jax.lax.while_loop(unfinished, advance, state).answers


def _prefill(
  model: Vlm,
  weights: Weights,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  copies: int,
  settings: Sampling,
) -> tuple[jax.Array, jax.Array, Past]:
  """Reads the prompts once.

  Returns:
    the last hidden state `[B x copies, D]` of each prompt, `bool[B x copies, M]` and
    the cache, with room for the answers.
  """
  cfg = model.cfg.llama
  x, valid = vlm.splice(ids, valid, _embed(model, weights, ids), visual)
  length = x.shape[1]
  positions = jnp.broadcast_to(jnp.arange(length), valid.shape)
  where = None
  if packed.implementation(x.dtype, cfg.head_dim) is not None:
    where = packed.packing(valid)
    x, positions = packed.pack(x, where), packed.pack(positions, where)
  rotation = attention.rotations(positions, cfg.head_dim, cfg.rope_theta, x.dtype)
  mask = attention.causal_mask(valid) if where is None else None
  room = cache.slots(length + settings.max_tokens) - length
  past = []

  def cached(new: jax.Array) -> jax.Array | Int8:
    new = new if where is None else packed.unpack(new, where, length)
    axes = ('batch', 'length', 'kv_heads', None)
    stored = cache_int8.store(new, settings.cache)
    return sampler.with_room(stored, axes, copies, room)

  def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    past.append((cached(k), cached(v)))
    if where is not None:
      return packed.attend(q, k, v, where.rows)
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
    mixed = attention.attend(q, k, v, mask, causal=True)
    return jnp.swapaxes(mixed, 1, 2)

  for layer in weights.layers:
    x = _block(model, layer, x, rotation, attend)
    # The cache is written at once; otherwise all keys would exist twice until the end.
    x, past[-1] = jax.lax.optimization_barrier((x, past[-1]))
  x = x[:, -1] if where is None else packed.unpack(x, where, length)[:, -1]
  last = jnp.repeat(_final_norm(model, weights, x), copies, axis=0)
  return last, jnp.repeat(valid, copies, axis=0), tuple(past)


def step(
  model: Vlm,
  weights: Weights,
  token: jax.Array,
  position: jax.Array,
  start: jax.Array,
  stop: jax.Array,
  past: Past,
) -> tuple[jax.Array, Past]:
  """Runs all layers on one token a row.

  Args:
    token: `int32[B]`.
    position: `int32[]`, the slot that the token takes.
    start, stop: `int32[B]`, the slots of each row, see `cache.attend`.

  Returns:
    hidden states `[B, D]`, and the cache with the token.
  """
  cfg = model.cfg.llama
  x = _embed(model, weights, token[:, None])
  positions = jnp.broadcast_to(position, (len(token), 1))
  rotation = attention.rotations(positions, cfg.head_dim, cfg.rope_theta, x.dtype)
  after = []
  for layer, (keys, values) in zip(weights.layers, past, strict=True):

    def attend(
      q: jax.Array,
      k: jax.Array,
      v: jax.Array,
      keys: jax.Array | Int8 = keys,
      values: jax.Array | Int8 = values,
    ) -> jax.Array:
      keys, values = cache.write(keys, k, position), cache.write(values, v, position)
      after.append((keys, values))
      return cache.attend(q[:, 0], keys, values, start, stop)[:, None]

    x = _block(model, layer, x, rotation, attend)
  return _final_norm(model, weights, x[:, 0]), tuple(after)


def _embed(model: Vlm, weights: Weights, ids: jax.Array) -> jax.Array:
  """`int32[B, T]` -> `[B, T, D]`."""
  table = weights.rest['llama']['tokens']['w']
  return jnp.take(table, ids, axis=0, mode='clip').astype(model.cfg.dtype)


def _final_norm(model: Vlm, weights: Weights, x: jax.Array) -> jax.Array:
  scale = weights.rest['llama']['final_norm']['scale']
  return layers.rms_norm(x, scale, model.cfg.llama.eps)


def _block(
  model: Vlm,
  layer: DecoderLayer,
  x: jax.Array,
  rotation: tuple[jax.Array, jax.Array],
  attend: Attend,
) -> jax.Array:
  """Computes `llama.Block` on `[B, T, D]`, with the axis of heads as in the cache.

  Args:
    attend: q `[B, T, H, K]`, k and v `[B, T, G, K]` -> `[B, T, H, K]`.
  """
  cfg = model.cfg.llama
  h = layers.rms_norm(x, layer.attn_norm, cfg.eps)
  q, k, v = (part.reshape(*h.shape[:2], -1, cfg.head_dim) for part in layer.qkv(h))
  q, k = (attention.rope(part, rotation, heads_axis=2) for part in (q, k))
  mixed = attend(q, k, v).reshape(*h.shape[:2], -1)
  x = x + layer.o(mixed)[0]
  h = layers.rms_norm(x, layer.mlp_norm, cfg.eps)
  gate, up = layer.gate_up(h)
  x = x + layer.down(jax.nn.silu(gate) * up)[0]
  return sharding.constrain(x, 'batch', 'length', 'stream')
