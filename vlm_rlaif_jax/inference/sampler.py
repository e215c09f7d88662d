"""Sampling from the policy: prefill once, then one jitted while-loop over a KV cache.

    slots   0 ............ M - 1 | M ........ M + R - 1      S = M + R
            prompt, left-padded  | answer, one slot a step

The cache is allocated inside the program and lives in the loop's state. Each step only
reads it inside the layer scan and writes the new keys and values once, in place; the
loop ends when every row has ended.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Cache, Vlm


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How answers are drawn. Temperature 0 is greedy."""

  max_tokens: int
  temperature: float = 1.0
  top_p: float = 1.0
  eos: int = 2
  pad: int = 0
  suppress: tuple[int, ...] = ()  # ids that are never drawn


@flax.struct.dataclass
class Answers:
  """What was drawn. After the end of sequence tokens are pads and the mask is false.

  tokens `int32[B, R]`; logprobs `float32[B, R]`, of the distribution that was sampled
  from (before top-p); mask `bool[B, R]`, true up to and including the end of sequence.
  """

  tokens: jax.Array
  logprobs: jax.Array
  mask: jax.Array


@flax.struct.dataclass
class _State:
  step: jax.Array
  hidden: jax.Array  # [B, D], of the newest token
  past: Any
  done: jax.Array  # bool[B]
  answers: Answers


def empty_cache(model: Vlm, batch: int, slots: int = 0) -> Cache:
  """Keys and values of no token: two `[L, B, G, slots, K]`."""
  cfg = model.cfg.llama
  shape = (cfg.layers, batch, cfg.kv_heads, slots, cfg.head_dim)
  return jnp.zeros(shape, model.cfg.dtype), jnp.zeros(shape, model.cfg.dtype)


def sample(
  model: Vlm, variables, ids, valid, visual, keys, settings: Sampling
) -> Answers:
  """Draws one or more answers a prompt; the prompt is read once.

  Args:
    variables: `{'params': base, 'lora': adapter}`; leave the adapter out for the base.
    ids: `int32[B, T]`, left-padded prompts; valid: `bool[B, T]`; visual: `[B, N, D]`.
    keys: `[B x copies]` typed keys, one an answer, the copies of a prompt together:
      what a row draws does not depend on the batch or on the device it is in.

  Returns:
    `B x copies` answers.
  """
  limit = settings.max_tokens
  # Once, and not at every step.
  variables = {
    role: jax.tree.map(lambda x: x.astype(model.cfg.dtype), tree)
    if role == 'lora'
    else tree
    for role, tree in variables.items()
  }
  with jax.named_scope('rollout/prefill'):
    hidden, valid, new = vlm.hidden(
      model, variables, ids, valid, visual, empty_cache(model, ids.shape[0])
    )
  copies = keys.shape[0] // ids.shape[0]
  last, valid = (jnp.repeat(x, copies, axis=0) for x in (hidden[:, -1], valid))
  new = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=1), new)
  batch, length = valid.shape
  slots = length + limit
  past = jax.tree.map(
    lambda x: sharding.constrain(
      jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, limit), (0, 0))),
      *('layer', 'batch', 'kv_heads', 'length', None),
    ),
    new,
  )
  seen = jnp.pad(valid, ((0, 0), (0, limit)))

  def extend(token, step, past, done):
    position = length + step
    slot = jnp.arange(slots)[None]
    visible = seen | ((slot >= length) & (slot < position))
    mask = jnp.pad(visible, ((0, 0), (0, 1)), constant_values=True)[:, None]
    hidden, new = vlm.extend(
      model, variables, token[:, None], jnp.full((batch, 1), position), mask, past
    )
    put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis=3)
    return hidden[:, 0], jax.tree.map(put, past, new)

  logits = lambda hidden: vlm.logits(model, variables, hidden)
  with jax.named_scope('rollout/decode'):
    return decode(last, past, logits, extend, keys, settings)


def decode(hidden, past, logits_of, extend, keys, settings: Sampling) -> Answers:
  """Draws tokens until every row has ended.

  Args:
    hidden: `[B, D]`, of the last token of each prompt.
    past: a cache of any form, with room for `max_tokens` more.
    logits_of: hidden states -> `float32[B, V]`.
    extend: (tokens `int32[B]`, number of the step, past, which rows had ended before
      `bool[B]`) -> their hidden states, and the past with them.
    keys: `[B]`.
  """
  batch, limit = hidden.shape[0], settings.max_tokens
  state = _State(
    step=jnp.int32(0),
    hidden=hidden,
    past=past,
    done=jnp.zeros(batch, bool),
    answers=Answers(
      tokens=jnp.full((batch, limit), settings.pad, jnp.int32),
      logprobs=jnp.zeros((batch, limit), jnp.float32),
      mask=jnp.zeros((batch, limit), bool),
    ),
  )

  def going(state: _State):
    return (state.step < limit) & ~jnp.all(state.done)

  def advance(state: _State) -> _State:
    logits = logits_of(state.hidden)
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys)
    token, logprob = draw(step_keys, logits, settings)
    token = jnp.where(state.done, settings.pad, token)
    put = lambda all_steps, x: jax.lax.dynamic_update_index_in_dim(
      all_steps, x, state.step, axis=1
    )
    answers = Answers(
      tokens=put(state.answers.tokens, token),
      logprobs=put(state.answers.logprobs, jnp.where(state.done, 0.0, logprob)),
      mask=put(state.answers.mask, ~state.done),
    )
    hidden, past = extend(token, state.step, state.past, state.done)
    done = state.done | (token == settings.eos)
    return _State(state.step + 1, hidden, past, done, answers)

  return jax.lax.while_loop(going, advance, state).answers


def draw(keys, logits, settings: Sampling):
  """One token a row and its log-probability. logits: `float32[B, V]`."""
  if settings.suppress:
    logits = logits.at[:, jnp.asarray(settings.suppress)].set(-jnp.inf)
  if settings.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    logits = logits / settings.temperature
    kept = nucleus(logits, settings.top_p) if settings.top_p < 1 else logits
    token = jax.vmap(jax.random.categorical)(keys, kept)
  logprob = jnp.take_along_axis(
    jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=-1
  )[:, 0]
  return token.astype(jnp.int32), logprob


def nucleus(logits, top_p: float):
  """Keeps the fewest tokens whose probability reaches top_p; Holtzman et al. 2020."""
  ordered = -jnp.sort(-logits, axis=-1)
  probability = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)


def next_logits(model: Vlm, variables, ids, valid, visual):
  """`float32[B, V]`: the distribution of the token after each left-padded prompt."""
  hidden, _, _ = vlm.hidden(model, variables, ids, valid, visual)
  return vlm.logits(model, variables, hidden[:, -1])


def example_keys(key, numbers):
  """`[B]` keys from `int32[B]` numbers of examples; the same on any devices."""
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
