"""What every algorithm on policy needs: responses, their log-probabilities, rewards.

    sample     the policy responds to prompts
    logprobs   log p of given responses under an adapter of the actor
    values     V of the state before each of their tokens, by an adapter of the critic
    rewards    the reward model's score of each response

A learner adds what it makes of them; `rl.ppo` adds PPO.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vlm_rlaif_jax.inference import decoder_weights, decoding, sampler, scoring
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.train.state import checksum
from vlm_rlaif_jax.types import Bases, Frozen, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class Learner:
  """Two networks, an optimizer and settings; hashable, so that it is compiled once.

  Attributes:
    actor: network of policy and reference.
    critic: network of value and reward.
    config: settings of the algorithm.
    optimizer: of everything that is trained.
    eos: id of the end of sequence.
    stops: further ids that end a response, see `inference.scoring.cut`.
    suffix: ids of the reward prompt, which the reward model reads after a response;
      where it has the narrative of a video, rows have their own (`Prompts`).
    devices: over which a batch is split.
    unk: id of the unknown token; PAD if there is none.
    other_ends: ids that end a response as `eos` does.
  """

  actor: Vlm
  critic: Vlm
  config: PpoConfig
  optimizer: optax.GradientTransformation
  eos: int
  stops: tuple[int, ...]
  suffix: tuple[int, ...]
  devices: int
  unk: int = 0  # as in LLaMA
  other_ends: tuple[int, ...] = ()

  @property
  def sampling(self) -> sampler.Sampling:
    """Returns how the policy samples."""
    suppressed = self.config.unknown == 'suppress' and self.unk != PAD
    return sampler.Sampling(
      self.config.response_tokens,
      self.config.temperature,
      eos=self.eos,
      suppress=(self.unk,) if suppressed else (),
      other_ends=self.other_ends,
      cache=self.config.rollout_cache,
    )

  def sample(
    self, bases: Bases, adapter: Any, prompts: Prompts, key: jax.Array
  ) -> Rollout:
    """Samples a response to every prompt; what follows a stop is cut off.

    Args:
      adapter: the policy's.
      key: with `prompts.example_id` it decides what is sampled.
    """
    variables = {'params': bases.actor, 'lora': adapter}
    weights = decoder_weights.prepare(
      self.actor, variables, self.config.rollout_weights
    )

    def sample_rows(rows: Prompts) -> sampler.Answers:
      return decoding.sample(
        self.actor,
        weights,
        rows.ids,
        rows.valid,
        rows.actor_visual,
        sampler.example_keys(key, rows.example_id),
        self.sampling,
      )

    at_once = self.config.sample_batch or prompts.ids.shape[0]
    answers = scoring.in_micro_batches(sample_rows, prompts, at_once)
    tokens, has_eos = scoring.cut(
      answers.tokens, self.eos, self.stops, self.config.stop_at, self.other_ends
    )
    if self.config.unknown == 'remove':
      tokens = jnp.where(tokens == self.unk, PAD, tokens)
    mask = tokens != PAD
    return Rollout(
      prompts=prompts,
      tokens=tokens,
      mask=mask,
      sampler_logprobs=jnp.where(mask, answers.logprobs, 0.0),
      has_eos=has_eos,
      adapter=checksum(adapter),
    )

  def logprobs(
    self,
    bases: Bases,
    adapter: Any,
    prompts: Prompts,
    tokens: jax.Array,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
  ) -> tuple[jax.Array, jax.Array]:
    """Returns log p and entropy of given responses under an adapter.

    Args:
      adapter: of the policy or of the reference.
      tokens: `int32[B, R]`.
      dtype: of the log-softmax (register B16).

    Returns:
      both `float32[B, R]`; log p is 0 at pads.
    """
    hidden = scoring.response_hidden(
      self.actor,
      bases.actor,
      adapter,
      prompts.ids,
      prompts.valid,
      prompts.actor_visual,
      tokens,
    )
    return scoring.response_logprobs(
      self.actor,
      bases.actor,
      hidden,
      tokens,
      self.config.temperature,
      self.sampling.suppress,
      self.config.logit_chunk,
      dtype,
    )

  def values(
    self, bases: Bases, adapter: Any, head: Any, prompts: Prompts, tokens: jax.Array
  ) -> jax.Array:
    """Returns V of the state before every response token, `float32[B, R]`."""
    hidden = scoring.response_hidden(
      self.critic,
      bases.critic,
      adapter,
      prompts.ids,
      prompts.valid,
      prompts.critic_visual,
      tokens,
    )
    return head(hidden)

  def rewards(
    self, bases: Bases, frozen: Frozen, prompts: Prompts, tokens: jax.Array
  ) -> jax.Array:
    """Returns the reward model's score of every response, `float32[B]`.

    It reads the one end that it was trained with, whichever was drawn.
    """
    for other in self.other_ends:
      tokens = jnp.where(tokens == other, self.eos, tokens)
    visual, suffix = prompts.critic_visual, prompts.reward_suffix
    if suffix is None:
      suffix = jnp.asarray(self.suffix, jnp.int32)
    if self.config.blind_reward:
      visual = jnp.zeros_like(visual)
    return scoring.reward_model_score(
      self.critic,
      bases.critic,
      frozen.reward,
      frozen.reward_head,
      jnp.where(prompts.valid, prompts.ids, PAD),
      visual,
      tokens,
      suffix,
    )


def repeat_checksum(rollout: Rollout) -> Rollout:
  """Returns the rollout with its checksum once a row, so that all leaves have rows."""
  adapter = jnp.broadcast_to(rollout.adapter, rollout.has_eos.shape)
  return dataclasses.replace(rollout, adapter=adapter)
