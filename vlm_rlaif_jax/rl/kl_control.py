"""How far a policy may go from its reference: the coefficient of the penalty, the stop.

All measure the mean KL of an answer, in nats, as the rollout has it.
"""

from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.settings.ppo_checks import KL_MAX_ERROR


def next_coefficient(config: PpoConfig, coefficient: float, kl: float) -> float:
  """Returns the weight of the KL penalty after an iteration.

  It stays as it is unless there is a target; then (Ziegler et al. 2019, section 2.2)

      e = clip(kl / target - 1, -0.2, 0.2)        beta <- beta (1 + e n / horizon)

  with n answers an iteration. It stays above 0, since a horizon is longer than 0.2 n.

  Args:
    kl: of an answer of this iteration, nats.
  """
  if not config.kl_target:
    return coefficient
  error = min(max(kl / config.kl_target - 1, -KL_MAX_ERROR), KL_MAX_ERROR)
  return coefficient * (1 + error * config.rollout_batch / config.kl_horizon)


def is_too_far(config: PpoConfig, kl: float) -> bool:
  """Returns whether the KL of an answer is over the limit that ends a run."""
  return bool(config.kl_stop) and kl > config.kl_stop
