"""Draws the next tokens of answers from logits."""

import dataclasses

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.models import CacheKind


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How answers are sampled.

  Attributes:
    max_tokens: R, the longest answer.
    temperature: divides the logits; 0 is greedy.
    top_p: probability mass that sampling is restricted to (nucleus sampling).
    eos: id of the end of sequence.
    pad: what follows the end of sequence.
    suppress: ids that are never drawn.
    other_ends: ids that end an answer as well.
    cache: how keys and values are held: as they are, or in 8 bits (`nn.cache_int8`).
  """

  max_tokens: int
  temperature: float = 1.0
  top_p: float = 1.0
  eos: int = 2
  pad: int = PAD
  suppress: tuple[int, ...] = ()
  other_ends: tuple[int, ...] = ()
  cache: CacheKind = 'native'

  def is_end(self, tokens: jax.Array) -> jax.Array:
    """Returns which tokens end an answer."""
    ends = tokens == self.eos
    for other in self.other_ends:
      ends |= tokens == other
    return ends


def draw_next(
  keys: jax.Array,
  step: jax.Array,
  logits: jax.Array,
  finished: jax.Array,
  settings: Sampling,
) -> tuple[jax.Array, jax.Array]:
  """Draws the token of a step in each row.

  Args:
    keys: `[B]`, the same at every step.
    step: `int32[]`.
    logits: `float32[B, V]`.
    finished: `bool[B]`, rows that have ended.

  Returns:
    `int32[B]` and `float32[B]`: as `draw`, the pad and 0 in the rows that have ended.
  """
  step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
  token, logprob = draw(step_keys, logits, settings)
  return jnp.where(finished, settings.pad, token), jnp.where(finished, 0.0, logprob)


def draw(
  keys: jax.Array, logits: jax.Array, settings: Sampling
) -> tuple[jax.Array, jax.Array]:
  """Draws one token a row from logits `float32[B, V]`.

  Returns:
    tokens `int32[B]` and their log-probabilities `float32[B]`.
  """
  if settings.suppress:
    logits = logits.at[:, jnp.asarray(settings.suppress)].set(-jnp.inf)
  if settings.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    logits = logits / settings.temperature
    if settings.top_p < 1:
      likely = nucleus(logits, settings.top_p)
    else:
      likely = logits
    token = jax.vmap(jax.random.categorical)(keys, likely)
  logprob = jnp.take_along_axis(
    jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=-1
  )[:, 0]
  return token.astype(jnp.int32), logprob


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
  """Keeps the fewest tokens whose probability reaches top_p; Holtzman et al. 2020.

  The logits of all other tokens become -inf.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  probability = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)
