"""Proximal policy optimization (Schulman et al. 2017) against a learned reward.

Four LoRA adapters on two frozen bases:

    policy, reference   on the actor's base; both start as the initialized policy
    value, reward       on the critic's base; both start as the reward model

An iteration is four pure functions. For a response y to a prompt x, with r(x, y) the
reward model's score:

    rollout   = sample     y ~ policy(. | x), and its log-probabilities
    scores    = score      log p under policy and reference, values V_t, r(x, y)
    estimates = estimate   r_t = -beta KL_t + [t is last] (r(x, y) + penalties), then
                           A_t and returns by GAE (Schulman et al. 2016)
    state     = update     epochs x minibatches of the clipped losses

The equations are in `objectives.returns` and `objectives.policy`; what the released
PyTorch code does otherwise is a field of `settings.ppo.PpoConfig`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.objectives import policy, returns
from vlm_rlaif_jax.rl import minibatches
from vlm_rlaif_jax.rl.algorithm import (
  Algorithm,
  Metrics,
  response_rewards,
  rollout_metrics,
)
from vlm_rlaif_jax.types import Bases, Estimates, Frozen, Rollout, Scores


@dataclasses.dataclass(frozen=True)
class PpoLearner(Algorithm):
  """PPO as pure functions of arrays."""

  def score_rows(
    self, bases: Bases, trainable: dict, frozen: Frozen, rollout: Rollout
  ) -> Scores:
    """Computes policy, reference, values and rewards of the rows of a micro-batch.

    Args:
      trainable: `{'policy': LoRA, 'value': LoRA, 'head': ScalarHead}`.
    """
    prompts, tokens = rollout.prompts, rollout.tokens
    with jax.named_scope('score/policy'):
      logprobs, entropy = self.logprobs(bases, trainable['policy'], prompts, tokens)
    with jax.named_scope('score/reference'):
      reference, _ = self.logprobs(
        bases, frozen.reference, prompts, tokens, self.config.reference_dtype
      )
    with jax.named_scope('score/value'):
      values = self.values(
        bases, trainable['value'], trainable['head'], prompts, tokens
      )
    with jax.named_scope('score/reward'):
      reward = self.rewards(bases, frozen, prompts, tokens)
    return Scores(logprobs, reference, values, entropy, reward)

  def estimate(
    self,
    rollout: Rollout,
    scores: Scores,
    correctness: jax.Array,
    length_weight: jax.Array | float = 1.0,
    kl_coef: jax.Array | float | None = None,
  ) -> tuple[Estimates, Metrics]:
    """Shapes rewards with the KL penalty; estimates advantages and returns.

    Args:
      correctness: `float32[B]`, match with a gold answer; 0 if there is none.
      length_weight: `float32[B]` or a number, multiplies the length bonus.
      kl_coef: weight of the KL penalty; None: that of the settings.
    """
    config, values = self.config, scores.values
    assert values is not None
    kl_coef = config.kl_coef if kl_coef is None else kl_coef
    mask = rollout.mask if config.mask_pads else None  # None: pads count (B10)
    whiten = functools.partial(
      returns.whiten, mask=mask, scope=config.whiten_scope, devices=self.devices
    )

    # Rewards a token: the KL penalty, and the response's own reward at its end.
    kl = returns.kl_estimate(scores.logprobs, scores.reference, config.kl)
    kl = kl * rollout.mask
    rewards = response_rewards(config, rollout, scores, correctness, length_weight)
    shaped = -kl_coef * kl + returns.place_terminal(
      rewards, rollout.mask, config.terminal
    )
    scaled = (
      whiten(shaped, recenter=False)
      if config.whiten_rewards
      else config.reward_scale * shaped
    )

    # Advantages and returns.
    advantages, targets = returns.gae(
      scaled, values, config.gamma, config.gae_lambda, mask
    )

    metrics = {
      **rollout_metrics(rollout, scores, kl, rewards),
      'objective/shaped': jnp.mean(jnp.sum(shaped, axis=1)),
      'returns/mean': policy.masked_mean(targets, mask),
      'values/mean': policy.masked_mean(values, mask),
      'explained_variance': returns.explained_variance(values, targets, rollout.mask),
    }
    return Estimates(advantages=whiten(advantages), returns=targets), metrics

  def step_constants(
    self, returns: jax.Array | None, mask: jax.Array
  ) -> dict[str, Any]:
    """Returns the radius of the value clip, which is of all rows of the step."""
    assert returns is not None
    return {'radius': minibatches.value_radius(returns, mask, self.config)}

  def policy_loss(
    self,
    trainable: dict,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
  ) -> tuple[jax.Array, Metrics]:
    """Returns the clipped policy loss of one micro-batch and its metrics."""
    config = self.config
    mask = rollout.mask if config.mask_pads else None
    with jax.named_scope('update/policy'):
      logprobs, _ = self.logprobs(
        bases, trainable['policy'], rollout.prompts, rollout.tokens
      )
    loss, stats = policy.policy_loss(
      logprobs, scores.logprobs, estimates.advantages, config.clip_ratio, mask
    )
    stats = {f'policy/{name}': value for name, value in stats.items()}
    kl = policy.approx_kl(logprobs, scores.logprobs, mask)
    return loss, {'loss/policy': loss, 'approx_kl': kl, **stats}

  def value_loss(
    self,
    trainable: dict,
    bases: Bases,
    rollout: Rollout,
    scores: Scores,
    estimates: Estimates,
    radius: jax.Array | float,
  ) -> tuple[jax.Array, Metrics]:
    """Returns value_coef x the clipped value loss of one micro-batch, and metrics.

    Args:
      radius: how far a value may move from its old one; infinite: no clip.
    """
    config = self.config
    assert scores.values is not None and estimates.returns is not None
    mask = rollout.mask if config.mask_pads else None
    with jax.named_scope('update/value'):
      values = self.values(
        bases, trainable['value'], trainable['head'], rollout.prompts, rollout.tokens
      )
    loss, stats = policy.value_loss(
      values, scores.values, estimates.returns, radius, mask
    )
    stats = {f'value/{name}': value for name, value in stats.items()}
    return config.value_coef * loss, {'loss/value': loss, **stats}

  def losses(
    self, trainable: dict, bases: Bases, *part: Any, radius: jax.Array | float
  ) -> tuple[jax.Array, Metrics]:
    """Returns the clipped policy loss + value_coef x the clipped value loss.

    It is what `gradient` is the gradient of, in one piece.

    Args:
      part: rollout, scores and estimates of one micro-batch; they are constants.
    """
    policy_loss, policy_stats = self.policy_loss(trainable, bases, *part)
    value_loss, value_stats = self.value_loss(trainable, bases, *part, radius=radius)
    return policy_loss + value_loss, {**policy_stats, **value_stats}

  def gradient(
    self, trainable: dict, bases: Bases, *part: Any, radius: jax.Array | float
  ) -> tuple[dict, Metrics]:
    """Returns the gradient of `losses`, computed for one network after the other.

    The activations of the policy are freed before those of the value exist.

    Args:
      part, radius: as in `losses`.
    """
    rest = {name: trainable[name] for name in trainable if name != 'policy'}
    policy_gradient, policy_stats = jax.grad(self.policy_loss, has_aux=True)(
      {'policy': trainable['policy']}, bases, *part
    )
    policy_gradient, rest, part = jax.lax.optimization_barrier(
      (policy_gradient, rest, part)
    )
    value_gradient, value_stats = jax.grad(self.value_loss, has_aux=True)(
      rest, bases, *part, radius
    )
    return {**policy_gradient, **value_gradient}, {**policy_stats, **value_stats}
