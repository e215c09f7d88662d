"""What the four roles say about answers: log-probabilities, values, rewards.

Every function takes the adapter as an argument; there is no mode to set. Alignment is
drawn in `types.py`.
"""

from typing import Literal

import einops
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.attention import MASKED
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import likelihood

PAD = 0


def response_hidden(model: Vlm, base, adapter, ids, valid, visual, tokens):
  """Hidden states before each answer token, `[B, R, D]`.

  Args:
    ids, valid: `[B, T]`, the prompt; tokens: `int32[B, R]`, the answer.
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
  base,
  hidden,
  tokens,
  temperature: float,
  suppress: tuple[int, ...] = (),
  chunk: int = 0,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
):
  """log p and entropy of the answer, both `float32[B, R]`; log p is exactly 0 at pads.

  Args:
    temperature, suppress: those of the sampler, so that both mean one distribution.
    chunk: positions whose logits exist at a time; 0: all.
    dtype: of the log-softmax; the reference scores its own reference policy in
      bfloat16 (register B16).
  """

  def one(h, t):
    logits = vlm.logits(model, {'params': base}, h) / temperature
    for token in suppress:
      logits = logits.at[..., token].set(MASKED)
    entropy = likelihood.entropy(logits)
    if dtype == 'bfloat16':
      logp = jax.nn.log_softmax(logits.astype(jnp.bfloat16), axis=-1)
      logp = jnp.take_along_axis(logp, t[..., None], axis=-1)[..., 0]
      return logp.astype(jnp.float32), entropy
    return likelihood.log_probabilities(logits, t), entropy

  logp, entropy = likelihood.over_chunks(one, hidden, tokens, chunk)
  return jnp.where(tokens == PAD, 0.0, logp), entropy


def reward_model_score(model: Vlm, base, adapter, head, ids, visual, tokens, suffix):
  """The reward of each answer, `float32[B]`, read after the reward prompt.

  All pads go (and an unknown token that was drawn, register B36), what is left is
  moved to the right, and the reward prompt is appended:

      0 0 1 -200 7 8 0 9 2 0 0  ->  0 0 0 0 0 1 -200 7 8 9 2 | s s s

  Args:
    suffix: `int32[S]`, ids of the reward prompt.
  """
  text = pads_to_the_left(jnp.concatenate([ids, tokens], axis=1))
  suffix = jnp.broadcast_to(suffix, (text.shape[0], suffix.shape[0]))
  text = jnp.concatenate([text, suffix], axis=1)
  hidden, _, _ = vlm.hidden(
    model, {'params': base, 'lora': adapter}, text, text != PAD, visual
  )
  return head(hidden[:, -1])


def pads_to_the_left(ids):
  """`int32[B, T]` -> the same with all pads first and the order of the rest kept."""
  order = jnp.argsort(ids != PAD, axis=1, stable=True)
  return jnp.take_along_axis(ids, order, axis=1)


def cut(
  tokens,
  eos: int,
  stops: tuple[int, ...] = (),
  rule: Literal['eos', 'question_last', 'question_first'] = 'eos',
):
  """Ends each answer at its stop; pads follow. `int32[B, R]` -> the same, stopped
  `[B]`.

  Args:
    stops: further ids that end an answer, inclusive (register B06).
    rule: 'eos': only the end of sequence; 'question_last': a later id of `stops`
      overrules an earlier one and the end of sequence, wherever it stands, as the
      reference does; 'question_first': whatever comes first.

  Returns:
    tokens, and whether an end of sequence is still among them.
  """
  length = tokens.shape[1]

  def first(token):
    found = tokens == token
    return jnp.where(jnp.any(found, 1), jnp.argmax(found, 1), length)

  end = first(eos)
  if rule != 'eos':
    for stop in stops:
      here = first(stop)
      end = (
        jnp.where(here < length, here, end)
        if rule == 'question_last'
        else jnp.minimum(end, here)
      )
  kept = jnp.arange(length)[None] <= end[:, None]
  tokens = jnp.where(kept, tokens, PAD)
  return tokens, jnp.any(tokens == eos, axis=1)


def in_micro_batches(function, tree, size: int):
  """`function` of `size` rows at a time; results in the order of the rows.

  Rows are taken with a stride, so that each device keeps its own.
  """
  rows = jax.tree.leaves(tree)[0].shape[0]
  if rows <= size:
    return function(tree)
  parts = jax.tree.map(
    lambda x: einops.rearrange(x, '(b a) ... -> a b ...', b=size), tree
  )
  out = jax.lax.map(function, parts)
  return jax.tree.map(lambda x: einops.rearrange(x, 'a b ... -> (b a) ...'), out)
