"""Samples answers: one pass over the prompts, then one token a step over a KV cache.

    slots   0 ............ M - 1 | M ........ M + R - 1      S = M + R
            prompt, left-padded  | answer, one slot a step

`sample` runs the steps in a `while_loop` and ends when every row has ended; callers
that show tokens as they come run prefill and steps themselves (`decoding`). The cache
is allocated inside the program and is part of the state. A step only reads it inside
the layer scan and writes the new keys and values once, in place. On TPUs a long answer
takes several loops, each of which reads the slots up to its last: see `stretches`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding, target
from vlm_rlaif_jax.inference.draws import Sampling, draw_next
from vlm_rlaif_jax.nn import cache, cache_int8, vlm
from vlm_rlaif_jax.nn.vlm import Cache, Vlm
from vlm_rlaif_jax.settings.models import CacheKind

MAX_LOOPS = 4  # over the tokens of an answer; each compiles the decoder once more


@flax.struct.dataclass
class Answers:
  """Sampled answers, right-padded.

  Attributes:
    tokens: `int32[B, R]`; pads after the end of sequence.
    logprobs: `float32[B, R]`, under the distribution with temperature and suppressed
      ids, before top-p; 0 after the end of sequence.
    mask: `bool[B, R]`, true up to and including the end of sequence.
  """

  tokens: jax.Array
  logprobs: jax.Array
  mask: jax.Array

  @classmethod
  def empty(cls, batch: int, settings: Sampling) -> 'Answers':
    """Returns answers of which no token is drawn."""
    shape = (batch, settings.max_tokens)
    return cls(
      tokens=jnp.full(shape, settings.pad, jnp.int32),
      logprobs=jnp.zeros(shape, jnp.float32),
      mask=jnp.zeros(shape, bool),
    )

  def put(
    self, step: jax.Array, token: jax.Array, logprob: jax.Array, finished: jax.Array
  ) -> 'Answers':
    """Returns the answers with the tokens of a step.

    Args:
      step: `int32[]`; token, logprob: `[B]`, as `draw_next` returns them.
      finished: `bool[B]`, rows that had finished before this step.
    """

    def write(all_steps: jax.Array, x: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_index_in_dim(all_steps, x, step, axis=1)

    return Answers(
      tokens=write(self.tokens, token),
      logprobs=write(self.logprobs, logprob),
      mask=write(self.mask, ~finished),
    )


@flax.struct.dataclass
class DecodeState:
  """Everything that one decode step reads and returns.

  Attributes:
    step: `int32[]`, how many tokens have been drawn.
    hidden: `[B, D]`, final hidden states of the newest tokens; the next one is drawn
      from their logits.
    cache: keys and values, each `[L, B, G, S, K]`, maybe in 8 bits; slots from M + step
      on are empty.
    prompt_mask: `bool[B, S]`, true at the slots of real prompt tokens.
    finished: `bool[B]`, rows that have drawn the end of sequence.
  """

  step: jax.Array
  hidden: jax.Array
  cache: Cache
  prompt_mask: jax.Array
  finished: jax.Array


def empty_cache(model: Vlm, batch: int, slots: int = 0) -> Cache:
  """Returns the keys and values of no token: two arrays `[L, B, G, slots, K]`."""
  cfg = model.cfg.llama
  shape = (cfg.layers, batch, cfg.kv_heads, slots, cfg.head_dim)
  return jnp.zeros(shape, model.cfg.dtype), jnp.zeros(shape, model.cfg.dtype)


def prefill(
  model: Vlm,
  variables: dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  max_tokens: int,
  copies: int = 1,
  kind: CacheKind = 'native',
) -> DecodeState:
  """Reads every prompt once and makes room for the answers.

  Args:
    ids, valid, visual: as in `sample`.
    max_tokens: R, the slots that the cache gets after the prompt.
    copies: answers a prompt; rows of the state are repeated, copies side by side.
    kind: of the cache: how keys and values are held.
  """
  hidden, valid, new = vlm.hidden(
    model, variables, ids, valid, visual, empty_cache(model, ids.shape[0])
  )
  last, valid = (jnp.repeat(x, copies, axis=0) for x in (hidden[:, -1], valid))
  assert new is not None  # there was a cache to go with
  keys, values = new
  axes = ('layer', 'batch', 'kv_heads', 'length', None)
  return DecodeState(
    step=jnp.int32(0),
    hidden=last,
    cache=with_room(
      (cache_int8.store(keys, kind), cache_int8.store(values, kind)),
      axes,
      copies,
      max_tokens,
    ),
    prompt_mask=jnp.pad(valid, ((0, 0), (0, max_tokens))),
    finished=jnp.zeros(valid.shape[0], bool),
  )


def with_room(past: Any, axes: Sequence[str | None], copies: int, room: int) -> Any:
  """Returns keys and values of each answer, with empty slots after those of its prompt.

  Args:
    past: a tree of arrays of the prompts; scales of 8 bits lack the last axis.
    axes: their logical axes, 'batch' and 'length' among them.
    copies: answers a prompt, side by side.
    room: slots that are added.
  """
  batch, length = axes.index('batch'), axes.index('length')

  def each(x: jax.Array) -> jax.Array:
    x = jnp.repeat(x, copies, axis=batch)
    x = jnp.pad(x, [(0, room if axis == length else 0) for axis in range(x.ndim)])
    return sharding.constrain(x, *axes[: x.ndim])

  return jax.tree.map(each, past)


def decode_step(
  model: Vlm,
  variables: dict,
  keys: jax.Array,
  settings: Sampling,
  state: DecodeState,
  reads: int | None = None,
) -> tuple[DecodeState, jax.Array, jax.Array]:
  """Draws one token a row and runs the decoder on it.

  Args:
    keys: `[B]` typed keys, one an answer, the same at every step.
    reads: slots of the cache that are read, at least M + step; None: all S.

  Returns:
    The next state; the tokens `int32[B]` and their log-probabilities `float32[B]`: the
    pad and 0 in the rows that had finished before this step.
  """
  batch, slots = state.prompt_mask.shape
  length = slots - settings.max_tokens  # of the prompt
  logits = vlm.logits(model, variables, state.hidden)
  token, logprob = draw_next(keys, state.step, logits, state.finished, settings)
  position = length + state.step
  reads = slots if reads is None else reads
  slot = jnp.arange(reads)[None]
  kv_mask = state.prompt_mask[:, :reads] | ((slot >= length) & (slot < position))
  mask = jnp.pad(kv_mask, ((0, 0), (0, 1)), constant_values=True)[:, None]
  hidden, new = vlm.extend(
    model,
    variables,
    token[:, None],
    jnp.full((batch, 1), position),
    mask,
    state.cache,
  )
  cache = jax.tree.map(
    lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis=3),
    state.cache,
    tuple(cache_int8.store(x, settings.cache) for x in new),
  )
  finished = state.finished | settings.is_end(token)
  state = DecodeState(state.step + 1, hidden[:, 0], cache, state.prompt_mask, finished)
  return state, token, logprob


def sample(
  model: Vlm,
  variables: dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  keys: jax.Array,
  settings: Sampling,
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
  limit, batch = settings.max_tokens, keys.shape[0]
  # The adapter is cast once, and not at every step.
  variables = {
    role: jax.tree.map(lambda x: x.astype(model.cfg.dtype), tree)
    if role == 'lora'
    else tree
    for role, tree in variables.items()
  }
  with jax.named_scope('rollout/prefill'):
    state = prefill(
      model, variables, ids, valid, visual, limit, batch // ids.shape[0], settings.cache
    )
  answers = Answers.empty(batch, settings)

  def advance(
    state: DecodeState, answers: Answers, reads: int
  ) -> tuple[DecodeState, Answers]:
    after, token, logprob = decode_step(model, variables, keys, settings, state, reads)
    return after, answers.put(state.step, token, logprob, state.finished)

  with jax.named_scope('rollout/decode'):
    for steps, reads in stretches(state.prompt_mask.shape[1] - limit, limit):
      # A counter of its own, whose limit is the number of steps, as planning reads it.
      _, state, answers = jax.lax.while_loop(
        lambda loop, steps=steps: (loop[0] < steps) & ~jnp.all(loop[1].finished),
        lambda loop, reads=reads: (loop[0] + 1, *advance(*loop[1:], reads)),
        (jnp.int32(0), state, answers),
      )
  return answers


def stretches(prompt: int, limit: int) -> list[tuple[int, int]]:
  """Returns of each loop over tokens its steps and the slots of the cache it reads.

  It is one loop, except on TPUs, where XLA reads the slots of a static range:

      slots    0 ............ M - 1 | M ............................. M + R - 1
      loop 0   reads ------------------------->
      loop 1   reads ------------------------------------->
      loop 2   reads --------------------------------------------------------->

  Args:
    prompt: M, slots of the prompt; limit: R, the longest answer.
  """
  slots = prompt + limit
  if target.platform() != 'tpu':
    return [(limit, slots)]
  step = cache.slots(-(-limit // MAX_LOOPS))
  ends = [cache.slots(end) for end in range(prompt + step, slots, step)]
  ends = [prompt, *(end for end in ends if end < slots), slots]
  return [(end - start, end) for start, end in itertools.pairwise(ends)]


def next_logits(
  model: Vlm, variables: dict, ids: jax.Array, valid: jax.Array, visual: jax.Array
) -> jax.Array:
  """Returns the logits of the token after each left-padded prompt, `float32[B, V]`."""
  hidden, _, _ = vlm.hidden(model, variables, ids, valid, visual)
  return vlm.logits(model, variables, hidden[:, -1])


def example_keys(key: jax.Array, example_ids: jax.Array) -> jax.Array:
  """Derives `[B]` keys from `int32[B]` example ids; the same on any devices."""
  return jax.vmap(lambda example_id: jax.random.fold_in(key, example_id))(example_ids)
