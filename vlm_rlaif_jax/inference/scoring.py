"""Scores of given answers: hidden states, log-probabilities and rewards.

Policy, reference, value and reward are four adapters on two bases. Each function takes
its adapter as an argument; there is no mode to set. `types.py` draws the alignment of
tokens and positions.
"""

from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.attention import MASKED
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.settings.constants import PAD


def response_hidden(
  model: Vlm,
  base: Any,
  adapter: Any,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  tokens: jax.Array,
) -> jax.Array:
  """Returns the hidden state before each answer token, `[B, R, D]`.

  Args:
    base, adapter: weights `{'llama': ...}` and LoRA.
    ids: `int32[B, T]`, prompts; valid: `bool[B, T]`, false at their pads.
    visual: `[B, N, D]`, visual tokens.
    tokens: `int32[B, R]`, answers, right-padded.
  """
  hidden, _, _ = vlm.hidden(
    model,
    {'params': base, 'lora': adapter},
    jnp.concatenate([ids, tokens], axis=1),
    jnp.concatenate([valid, tokens != PAD], axis=1),
    visual,
  )
  return hidden[:, -tokens.shape[1] - 1 : -1]


def response_logprobs(
  model: Vlm,
  base: Any,
  hidden: jax.Array,
  tokens: jax.Array,
  temperature: float,
  suppress: tuple[int, ...] = (),
  chunk: int = 0,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """Returns the log-probability of each answer token and the entropy there.

  Args:
    hidden: `[B, R, D]`, of `response_hidden`.
    tokens: `int32[B, R]`, answers.
    temperature, suppress: as the sampler's, so that both use one distribution.
    chunk: positions whose logits exist at a time; 0: all.
    dtype: of the log-softmax; the reference implementation scores the reference policy
      in bfloat16 (register B16).

  Returns:
    both `float32[B, R]`; log-probabilities are exactly 0 at pads.
  """

  def one(h: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = vlm.logits(model, {'params': base}, h) / temperature
    for token in suppress:
      logits = logits.at[..., token].set(MASKED)
    entropy = likelihood.entropy(logits)
    if dtype == 'bfloat16':
      logp = jax.nn.log_softmax(logits.astype(jnp.bfloat16), axis=-1)
      logp = jnp.take_along_axis(logp, t[..., None], axis=-1)[..., 0]
      return logp.astype(jnp.float32), entropy
    return likelihood.log_probabilities(logits, t), entropy

  is_pad = tokens == PAD
  tokens = jnp.where(is_pad, 0, tokens)  # any id: what is looked up there is dropped
  logp, entropy = likelihood.over_chunks(one, hidden, tokens, chunk)
  return jnp.where(is_pad, 0.0, logp), entropy


def reward_model_score(
  model: Vlm,
  base: Any,
  adapter: Any,
  head: Callable[[jax.Array], jax.Array],
  ids: jax.Array,
  visual: jax.Array,
  tokens: jax.Array,
  suffix: jax.Array,
) -> jax.Array:
  """Returns the reward of each answer, `float32[B]`, read after the reward prompt.

  Pads (and the places of sampled unknown tokens that were removed: register B36) move
  to the left, and the reward prompt s is appended:

      p p 1 -200 7 8 p 9 2 p p  ->  p p p p p 1 -200 7 8 9 2 | s s s

  Args:
    base, adapter: weights `{'llama': ...}` and LoRA of the reward model.
    head: maps the last hidden state `[B, D]` to the reward.
    ids: `int32[B, T]`, prompts; tokens: `int32[B, R]`, answers.
    visual: `[B, N, D]`, visual tokens by the reward model's base.
    suffix: `int32[S]`, ids of the reward prompt; or `int32[B, S]`, that of each row,
      with PAD where it is shorter.
  """
  suffix = jnp.broadcast_to(suffix, (ids.shape[0], suffix.shape[-1]))
  text = pads_to_the_left(jnp.concatenate([ids, tokens, suffix], axis=1))
  hidden, _, _ = vlm.hidden(
    model, {'params': base, 'lora': adapter}, text, text != PAD, visual
  )
  return head(hidden[:, -1])


def pads_to_the_left(ids: jax.Array) -> jax.Array:
  """Moves all pads to the front and keeps the order of the rest, `int32[B, T]`."""
  order = jnp.argsort(ids != PAD, axis=1, stable=True)
  return jnp.take_along_axis(ids, order, axis=1)


def cut(
  tokens: jax.Array,
  eos: int,
  stops: tuple[int, ...] = (),
  rule: Literal['eos', 'question_last', 'question_first'] = 'eos',
  other_ends: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Ends each answer after its stop token and pads the rest.

  Args:
    tokens: `int32[B, R]`, answers.
    stops: further ids that end an answer, inclusive (register B06).
    rule: 'eos': the end of sequence only; 'question_last': the last id of `stops` that
      occurs overrules the earlier ids and the end of sequence, wherever it stands, as
      in the reference implementation; 'question_first': whichever token comes first.
    other_ends: ids that count as the end of sequence.

  Returns:
    the tokens `int32[B, R]`, and whether they still hold an end of sequence, `bool[B]`.
  """
  length = tokens.shape[1]

  def first(token: int) -> jax.Array:
    matches = tokens == token
    return jnp.where(jnp.any(matches, 1), jnp.argmax(matches, 1), length)

  end = first(eos)
  for other in other_ends:
    end = jnp.minimum(end, first(other))
  if rule != 'eos':
    for stop in stops:
      here = first(stop)
      end = (
        jnp.where(here < length, here, end)
        if rule == 'question_last'
        else jnp.minimum(end, here)
      )
  before_stop = jnp.arange(length)[None] <= end[:, None]
  tokens = jnp.where(before_stop, tokens, PAD)
  return tokens, jnp.any(jnp.isin(tokens, jnp.asarray((eos, *other_ends))), axis=1)


def in_micro_batches(function: Callable[[Any], Any], tree: Any, size: int) -> Any:
  """Applies a function to `size` rows at a time; results are in the order of the rows.

  A micro-batch is a strided selection of rows, so that each device keeps its own.

  Args:
    tree: arrays with a leading axis of rows.
  """
  rows = jax.tree.leaves(tree)[0].shape[0]
  if rows <= size:
    return function(tree)
  parts = jax.tree.map(
    lambda x: einops.rearrange(x, '(b a) ... -> a b ...', b=size), tree
  )
  out = jax.lax.map(function, parts)
  return jax.tree.map(lambda x: einops.rearrange(x, 'a b ... -> (b a) ...'), out)
