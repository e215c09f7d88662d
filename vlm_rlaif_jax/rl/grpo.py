"""Group relative policy optimization (Shao et al. 2024): PPO without a value function.

Each question has a group of G responses, and a response is as good as its reward beats
the others of its group:

    A_i = (r_i - mean of the group) / deviation of the group, at every token of i
    loss = mean over tokens of max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) + beta k3

The KL penalty is a term of the loss (k3, Schulman 2020) and not of the rewards. Means
are over the tokens of an optimizer step, as in DAPO (Yu et al. 2025); the paper's mean
of the means of responses weighs a token of a long response less.

Only the policy is trained: there is no value adapter, and none in the artifact.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.objectives import policy, returns
from vlm_rlaif_jax.rl.algorithm import (
  Algorithm,
  Metrics,
  response_rewards,
  rollout_metrics,
)
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Rollout, Scores


@dataclasses.dataclass(frozen=True)
class GrpoLearner(Algorithm):
  """GRPO as pure functions of arrays; `config.group` rows in a row are one group."""

  has_value: ClassVar[bool] = False

  def score_rows(
    self, bases: Bases, trainable: dict, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Computes policy, reference and rewards of the rows of a micro-batch."""
    prompts, tokens = rollout.prompts, rollout.tokens
    with jax.named_scope('score/policy'):
      logprobs, entropy = self.logprobs(bases, trainable['policy'], prompts, tokens)
    with jax.named_scope('score/reference'):
      reference, _ = self.logprobs(
        bases, frozen.reference, prompts, tokens, self.config.reference_dtype
      )
    with jax.named_scope('score/reward'):
      reward = self.rewards(bases, frozen, prompts, tokens)
    return Scores(logprobs, reference, None, entropy, reward)

  def estimate(
    self,
    rollout: Rollout,
    scores: Scores,
    correctness: jax.Array,
    length_weight: jax.Array | float = 1.0,
    kl_coef: jax.Array | float | None = None,
  ) -> tuple[Estimates, Metrics]:
    """Compares the rewards of a group.

    Args:
      correctness, length_weight: of `response_rewards`.
      kl_coef: weight of the KL term; None: that of the settings.
    """
    config, mask = self.config, rollout.mask
    beta = config.kl_coef if kl_coef is None else kl_coef
    rewards = response_rewards(config, rollout, scores, correctness, length_weight)
    advantages = returns.group_advantages(rewards, config.group)
    kl = returns.kl_estimate(scores.logprobs, scores.reference, 'k3') * mask
    metrics = {
      **rollout_metrics(rollout, scores, kl, rewards),
      'objective/group_deviation': jnp.mean(
        jnp.std(rewards.reshape(-1, config.group), axis=1)
      ),
    }
    weight = jnp.broadcast_to(jnp.asarray(beta, jnp.float32), rewards.shape)
    return Estimates(advantages=advantages[:, None] * mask, kl_weight=weight), metrics

  def gradient(
    self,
    trainable: dict,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
    **constants: Any,
  ) -> tuple[dict, Metrics]:
    """Returns the gradient of the clipped loss with its KL term, and metrics."""
    del constants
    mask, kl_weight = rollout.mask, estimates.kl_weight
    assert kl_weight is not None

    def loss(adapter: Any) -> tuple[jax.Array, Metrics]:
      with jax.named_scope('update/policy'):
        logprobs, _ = self.logprobs(bases, adapter, rollout.prompts, rollout.tokens)
      clipped, stats = policy.policy_loss(
        logprobs, scores.logprobs, estimates.advantages, self.config.clip_ratio, mask
      )
      kl = returns.kl_estimate(logprobs, scores.reference, 'k3')
      penalty = policy.masked_mean(kl_weight[:, None] * kl, mask)
      stats = {f'policy/{name}': value for name, value in stats.items()}
      distance = policy.approx_kl(logprobs, scores.logprobs, mask)
      losses = {'loss/policy': clipped, 'loss/kl': penalty, 'approx_kl': distance}
      return clipped + penalty, {**losses, **stats}

    gradient, stats = jax.grad(loss, has_aux=True)(trainable['policy'])
    return {'policy': gradient}, stats
