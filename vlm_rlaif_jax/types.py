"""Pytrees that cross modules, and the vocabulary of shapes.

  B videos or rows   F frames   P patches   N = F + P visual tokens   D width
  T prompt tokens    R answer tokens        M = T + N - 1 + R embedded positions

Time, drawn once. A prompt is left-padded, an answer is right-padded:

    embedded   p  q  V  V  q  q | a  b  c </s> p        M = 11, R = 5
    hidden     .  .  .  .  .  h   h  h  h  h   .        h: positions M-R-1 .. M-2
    gives                      \\_ a  b  c </s> p        log p of token t, read from the
                                                        position before it
    value                      V0 V1 V2 V3 V4           of the state before token t
    t                             0  1  2  3   4
    mask                          1  1  1  1   0        up to the stop, inclusive
"""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Prompts:
  """Questions about videos, as the networks read them.

  Attributes:
    ids: `int32[B, T]`, left-padded, one video slot.
    valid: `bool[B, T]`.
    actor: `[B, N, D]`, visual tokens by the projector of the actor's base.
    critic: the same by that of the critic's base (the same array if they share one).
    number: `int32[B]`, of the example: keys the sampling.
  """

  ids: jax.Array
  valid: jax.Array
  actor: jax.Array
  critic: jax.Array
  number: jax.Array


@flax.struct.dataclass
class Rollout:
  """Prompts and what the policy said.

  Attributes:
    tokens: `int32[B, R]`, cut at the stop, pads after it.
    mask: `bool[B, R]`, true at real tokens.
    sampled: `float32[B, R]`, log-probabilities that the sampler saw.
    stopped: `bool[B]`, whether the answer has an end of sequence.
    adapter: uint32, checksum of the adapter that sampled.
  """

  prompts: Prompts
  tokens: jax.Array
  mask: jax.Array
  sampled: jax.Array
  stopped: jax.Array
  adapter: jax.Array


@flax.struct.dataclass
class Scores:
  """What the four networks say about a rollout; `float32[B, R]` but reward `[B]`."""

  logprobs: jax.Array
  reference: jax.Array
  values: jax.Array
  entropy: jax.Array
  reward: jax.Array


@flax.struct.dataclass
class Estimates:
  """What the update learns from; `float32[B, R]`."""

  advantages: jax.Array
  returns: jax.Array


@flax.struct.dataclass
class Bases:
  """Frozen `{'llama': ...}` of the actor (policy, reference) and the critic (value,
  reward); one tree twice where both start from the same weights."""

  actor: Any
  critic: Any


@flax.struct.dataclass
class Frozen:
  """Adapters that PPO reads and never changes."""

  reference: Any
  reward: Any
  reward_head: Any
