"""Settings of PPO that would do something else than they say, or nothing."""

import pytest

from configs.ppo import PRESETS
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun


@pytest.mark.parametrize(
  'preset, changes',
  [('parity', {'mask_pads': True}), ('masked', {'terminal': 'last_index'})],
)
def test_a_reward_on_a_pad_that_is_left_out_is_refused(preset, changes):
  """GAE drops what is on pads, so answers that end would have no reward at all."""
  with pytest.raises(ValueError, match=r"^terminal: 'last_index' is a pad of every"):
    PpoConfig(**{**PRESETS[preset], **changes})
  together = {**PRESETS[preset], 'mask_pads': True, 'terminal': 'last_token'}
  assert PpoConfig(**together).terminal == 'last_token'
  PpoConfig(**{**PRESETS['parity'], 'terminal': 'last_token'})  # pads follow it


def test_a_weight_of_zero_that_a_target_multiplies_is_refused():
  with pytest.raises(ValueError, match=r'^kl_coef: is 0, which kl_target=5 multiplies'):
    PpoConfig(kl_coef=0.0, kl_target=5.0)
  assert PpoConfig(kl_coef=0.0).kl_target == 0


@pytest.mark.parametrize('chosen', [{'select': 'judge'}, {'reward': 'judge'}])
def test_a_judge_without_the_narrative_is_refused(chosen):
  """It always reads one: the setting is of the stage label."""
  blind = LabelConfig(context='none')
  with pytest.raises(
    ValueError, match=r"^judge\.context: 'none' is for the stage label"
  ):
    PpoRun(ppo=PpoConfig(**chosen), judge=blind)
  assert PpoRun(judge=blind).judge.context == 'none'  # nobody judges
