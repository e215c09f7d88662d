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


def test_a_fixed_coefficient_is_that_of_the_settings_and_not_of_a_checkpoint():
  """A run that goes on with another one (on_change=ignore) has the other one."""
  history = {}
  kl_control.KlControl(config(kl_coef=0.2), history).follow(1, 0.5)
  assert kl_control.KlControl(config(kl_coef=0.05), history).coefficient == 0.05
  following = {'kl_coef': 0.05, 'kl_target': 0.5, 'kl_horizon': 256.0}
  kl_control.KlControl(config(**following), history).follow(2, 50.0)
  adapted = kl_control.KlControl(config(**following), history).coefficient
  assert adapted == pytest.approx(0.2 * (1 + 0.2 * 0.5))  # it goes on from the former


@pytest.mark.parametrize('limit, goes_on', [(2.0, False), (3.0, True), (0.0, True)])
def test_a_run_that_had_ended_goes_on_where_its_limit_is_another_one(
  limit, goes_on, capsys
):
  history = {}
  kl_control.KlControl(config(kl_stop=2.0), history).follow(4, 2.5)
  assert history['stopped'] == 4
  again = kl_control.KlControl(config(kl_stop=limit), history)
  again.resume()
  assert again.has_ended != goes_on
  output = capsys.readouterr().out
  assert ('had ended at iteration 4 and goes on' in output) == goes_on
  assert ('stopped_kl' in history) != goes_on
