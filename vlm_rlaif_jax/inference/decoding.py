"""Samples answers on GPUs without a scan over layers, from a cache of arrays a layer.

    decoder_weights.prepare   (base, adapter) -> Weights, once a rollout
    sample                    prompts -> answers, with the draws of `sampler.sample`
    answer                    both, for a batch of prompts
    prefill, decode_step      the parts of sample, for those who show every token

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
from vlm_rlaif_jax.inference.draws import Sampling, draw_next
from vlm_rlaif_jax.inference.sampler import Answers
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
    state = _start(model, weights, ids, valid, visual, settings, copies)
  with jax.named_scope('rollout/decode'):
    return _decode(model, weights, state, keys, settings)


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
  weights = answer_weights(model, variables)
  return sample(model, weights, ids, valid, visual, keys, settings)


def answer_weights(model: Vlm, variables: dict) -> Weights | dict:
  """Returns the weights that `answer` decodes from, for those who show every token.

  Outside of a program: as outputs of one, weights that are read in place would be
  copied.
  """
  copies_layers = decoder_weights.affords_copy(variables)
  return decoder_weights.prepare(model, variables, 'beside', copies_layers)


@flax.struct.dataclass
class State:
  """What decoding has come to: see `sampler.DecodeState`.

  Attributes:
    past: keys and values, an entry a layer, with room for the answers.
    start: `int32[B]`, the first slot of each prompt.
    length: M, the slots of the prompts.
  """

  step: jax.Array
  hidden: jax.Array
  past: Past
  finished: jax.Array
  start: jax.Array
  length: int = flax.struct.field(pytree_node=False)


def prefill(
  model: Vlm,
  weights: Weights | dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  settings: Sampling,
) -> State | sampler.DecodeState:
  """Reads every prompt once; `decode_step` draws its answer.

  Args:
    weights: of `answer_weights`, or of `decoder_weights.prepare`.
    ids, valid, visual: as in `sampler.sample`.
  """
  if isinstance(weights, Weights):
    return _start(model, weights, ids, valid, visual, settings)
  limit, kind = settings.max_tokens, settings.cache
  return sampler.prefill(model, weights, ids, valid, visual, limit, kind=kind)


def decode_step(
  model: Vlm,
  weights: Weights | dict,
  keys: jax.Array,
  settings: Sampling,
  state: State | sampler.DecodeState,
) -> tuple[State | sampler.DecodeState, jax.Array, jax.Array]:
  """Draws one token a row: see `sampler.decode_step`."""
  if isinstance(weights, Weights):
    assert isinstance(state, State)
    return _advance(model, weights, keys, settings, state)
  assert isinstance(state, sampler.DecodeState)
  return sampler.decode_step(model, weights, keys, settings, state)


def _start(
  model: Vlm,
  weights: Weights,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  settings: Sampling,
  copies: int = 1,
) -> State:
  """Returns the state of B x copies answers of which no token is drawn."""
  hidden, valid, past = _prefill(model, weights, ids, valid, visual, copies, settings)
  length = valid.shape[1]
  start = jnp.where(jnp.any(valid, 1), jnp.argmax(valid, 1), length).astype(jnp.int32)
  finished = jnp.zeros(len(hidden), bool)
  return State(jnp.int32(0), hidden, past, finished, start, length)


def _advance(
  model: Vlm, weights: Weights, keys: jax.Array, settings: Sampling, state: State
) -> tuple[State, jax.Array, jax.Array]:
  """Returns the next state, and tokens and log-probabilities of those not finished."""
  logits = vlm.logits(model, {'params': weights.rest}, state.hidden)
  token, logprob = draw_next(keys, state.step, logits, state.finished, settings)
  position = state.length + state.step
  stop = jnp.where(state.finished, 0, position + 1).astype(jnp.int32)
  hidden, past = step(model, weights, token, position, state.start, stop, state.past)
  finished = state.finished | settings.is_end(token)
  state = state.replace(  # type: ignore[attr-defined]
    step=state.step + 1, hidden=hidden, past=past, finished=finished
  )
  return state, token, logprob


def _decode(
  model: Vlm, weights: Weights, state: State, keys: jax.Array, settings: Sampling
) -> Answers:
  """Draws tokens until every row has ended.

  Args:
    keys: `[B]`.
  """

  def unfinished(loop: tuple[State, Answers]) -> jax.Array:
    state, _ = loop
    return (state.step < settings.max_tokens) & ~jnp.all(state.finished)

  def advance(loop: tuple[State, Answers]) -> tuple[State, Answers]:
    state, answers = loop
    after, token, logprob = _advance(model, weights, keys, settings, state)
    return after, answers.put(state.step, token, logprob, state.finished)

  answers = Answers.empty(len(state.hidden), settings)
  return jax.lax.while_loop(unfinished, advance, (state, answers))[1]


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
