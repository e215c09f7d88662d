"""How far a policy may go from its reference: the coefficient of the penalty, the stop.

All measure the mean KL of an answer, in nats, as the rollout has it.
"""

from typing import Any

from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.settings.ppo_checks import KL_MAX_ERROR
from vlm_rlaif_jax.train import console


class KlControl:
  """Follows the distance of a policy from its reference, iteration by iteration.

  Args:
    history: of `rl.loop.Iterations`, saved with every checkpoint; this adds `kl_coef`,
      and where an iteration was the last one, `stopped` (its number) and `stopped_kl`.
  """

  def __init__(self, config: PpoConfig, history: dict[str, Any]):
    self.config, self.history = config, history

  @property
  def coefficient(self) -> float:
    """Returns the weight of the KL penalty of the next iteration.

    Only one that follows a target is that of the checkpoint: a fixed one may have been
    changed since (`checkpoint.on_change=ignore`).
    """
    fixed = self.config.kl_coef
    return self.history.get('kl_coef', fixed) if self.config.kl_target else fixed

  @property
  def has_ended(self) -> bool:
    """Returns whether an iteration went too far, the last one."""
    return 'stopped' in self.history

  def follow(self, number: int, kl: float) -> None:
    """Takes the KL of an answer of an iteration, nats."""
    self.history['kl_coef'] = next_coefficient(self.config, self.coefficient, kl)
    if is_too_far(self.config, kl):
      self.history |= {'stopped': number, 'stopped_kl': kl}

  def resume(self) -> None:
    """Goes on with a run that had ended at a limit which is another one now."""
    kl = self.history.get('stopped_kl', float('inf'))
    if self.has_ended and not is_too_far(self.config, kl):
      number = self.history.pop('stopped')
      self.history.pop('stopped_kl', None)
      console.say(
        f'  the run had ended at iteration {number} and goes on: config.ppo.kl_stop is '
        f'{self.config.kl_stop:g}'
      )


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
