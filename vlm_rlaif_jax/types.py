"""Pytrees that cross packages, and the vocabulary of shapes.

  B videos or rows   F frames   P patches   N = F + P visual tokens   D width
  T prompt tokens    R response tokens      L = T + N - 1 + R embedded positions

Alignment in time. A prompt is left-padded, a response is right-padded; V are the N
visual tokens in the place of the prompt's one video slot:

    embedded   p  q  V  V  q  q | a  b  c </s> p        L = 11, R = 5
    hidden     .  .  .  .  .  h   h  h  h  h   .        h: positions L-R-1 .. L-2
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
  """Questions about videos, as the two networks of PPO read them.

  Attributes:
    ids: `int32[B, T]`, token ids, left-padded with 0; one id a row is the video slot.
    valid: `bool[B, T]`, false at pads.
    actor_visual: `[B, N, D]`, visual tokens of the videos, encoded by the tower and
      projector of the actor's base (the base of policy and reference).
    critic_visual: `[B, N, D']`, the same by the critic's base (the base of value and
      reward); the same array where both roles have one base.
    example_id: `int32[B]`, numbers of the examples; with a key they decide what is
      sampled, so that a row does not depend on its batch.
    reward_suffix: `int32[B, S]`, the reward prompt with the narrative of the video,
      PAD before it; None where one prompt is every row's (`Learner.suffix`).
  """

  ids: jax.Array
  valid: jax.Array
  actor_visual: jax.Array
  critic_visual: jax.Array
  example_id: jax.Array
  reward_suffix: jax.Array | None = None


@flax.struct.dataclass
class Rollout:
  """Prompts, and the responses that the policy sampled.

  Attributes:
    prompts: the questions, one a row.
    tokens: `int32[B, R]`, responses, cut at their stop; PAD after it.
    mask: `bool[B, R]`, true at real tokens: up to and including the stop, with holes
      where sampled unknown tokens were removed (`ppo.unknown`).
    sampler_logprobs: `float32[B, R]`, log-probabilities that the sampler computed, 0 at
      pads. `Scores.logprobs` computes them again; their difference is a metric.
    has_eos: `bool[B]`, whether an end of sequence is left in the response; one that a
      stop text ended has none.
    adapter: `uint32[]`, checksum of the policy's adapter that sampled. The training
      loop compares it with the checksum after the last update, so that a rollout of an
      outdated policy is an error.
  """

  prompts: Prompts
  tokens: jax.Array
  mask: jax.Array
  sampler_logprobs: jax.Array
  has_eos: jax.Array
  adapter: jax.Array


@flax.struct.dataclass
class Scores:
  """What the four roles compute for a rollout, before any update.

  Attributes:
    logprobs: `float32[B, R]`, natural log-probabilities of the response tokens under
      the policy that sampled them, 0 at pads; the "old" ones of PPO's ratio.
    reference: `float32[B, R]`, the same under the reference policy, for the KL penalty.
    values: `float32[B, R]`, the value head's estimate of the return, of the state
      before each token; None of an algorithm without a value function.
    entropy: `float32[B, R]`, of the policy's distribution of each token, in nats.
    reward: `float32[B]`, the reward model's score of each whole response, before
      penalties, bonuses and scaling.
  """

  logprobs: jax.Array
  reference: jax.Array
  values: jax.Array | None
  entropy: jax.Array
  reward: jax.Array


@flax.struct.dataclass
class Estimates:
  """What the update learns from, computed from `Scores` before the first step.

  Attributes:
    advantages: `float32[B, R]`, generalized advantage estimates of each response token,
      whitened over `ppo.whiten_scope` (mean 0, standard deviation 1).
    returns: `float32[B, R]`, advantages before whitening plus values: the targets of
      the value function; None where there is none.
    kl_weight: `float32[B]`, weight of a KL term in the loss; None where the KL penalty
      is in the rewards.
  """

  advantages: jax.Array
  returns: jax.Array | None = None
  kl_weight: jax.Array | None = None


@flax.struct.dataclass
class Bases:
  """Frozen weights `{'llama': ...}`, in 16 bits or quantized.

  Attributes:
    actor: below the adapters of policy and reference.
    critic: below the adapters of value and reward; the same tree where both roles
      start from the same weights.
  """

  actor: Any
  critic: Any


@flax.struct.dataclass
class Frozen:
  """Adapters and a head that PPO reads and never changes.

  Attributes:
    reference: LoRA of the reference policy, on the actor's base.
    reward: LoRA of the reward model, on the critic's base.
    reward_head: its scalar head, `nn.heads.ScalarHead`.
  """

  reference: Any
  reward: Any
  reward_head: Any
