import pytest

from vlm_rlaif_jax.rl import kl_control
from vlm_rlaif_jax.settings.ppo import PpoConfig


def config(**changes):
  return PpoConfig(rollout_batch=128, micro_batch=64, step_batch=64, **changes)


def test_the_coefficient_is_fixed_without_a_target():
  assert kl_control.next_coefficient(config(), 0.2, 100.0) == 0.2


@pytest.mark.parametrize(
  'distance, factor',
  [
    (0.5, 1.0),
    (0.55, 1 + 0.1 * 0.5),  # a tenth too far
    (50.0, 1 + 0.2 * 0.5),  # the error is clipped
    (0.0, 1 - 0.2 * 0.5),
  ],
)
def test_the_coefficient_follows_the_distance(distance, factor):
  """Ziegler et al. 2019, section 2.2: n / horizon is one half here."""
  after = kl_control.next_coefficient(
    config(kl_target=0.5, kl_horizon=256.0), 0.2, distance
  )
  assert after == pytest.approx(0.2 * factor)


def test_a_horizon_after_which_the_coefficient_is_not_positive_is_refused():
  """128 answers in a horizon of 25: a fifth of 128 / 25 is more than 1."""
  for horizon in (25.0, 0.2 * 128):
    with pytest.raises(ValueError, match=r'^kl_horizon: must be > 25\.6, a fifth of'):
      config(kl_target=5.0, kl_horizon=horizon)
  assert config(kl_horizon=25.0).kl_target == 0  # nothing is adapted
  shortest = config(kl_target=5.0, kl_horizon=26.0)
  assert 0 < kl_control.next_coefficient(shortest, 0.1, 0.0) < 0.1


def test_a_run_ends_over_its_limit_only():
  assert not kl_control.is_too_far(config(), 1e9)
  assert not kl_control.is_too_far(config(kl_stop=2.0), 2.0)
  assert kl_control.is_too_far(config(kl_stop=2.0), 2.1)
