"""The work of a PPO iteration, which rates are of."""

import pytest

from configs import ppo as config
from vlm_rlaif_jax.rl import flops
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun

SETTINGS = from_config_dict(PpoRun, config.get_config())
LORA = LoraConfig()


def work(tokens):
  return flops.step_flops(SETTINGS, LORA, LORA, 3, tokens)


def test_work_is_of_answers_of_the_length_that_they_have():
  rows, full = SETTINGS.ppo.rollout_batch, SETTINGS.ppo.response_tokens
  prompt = flops.lengths(SETTINGS)[0]
  positions, needed, recomputed = work(full)
  assert positions == rows * flops.lengths(SETTINGS)[1]
  planned = flops.counts(SETTINGS, LORA, LORA, 3).values()
  assert needed == pytest.approx(sum(part.needed for part in planned))
  assert recomputed == pytest.approx(sum(part.recomputed for part in planned))

  shorter = work(10.5)
  assert shorter[0] == rows * (prompt + 10.5)
  share = (prompt + 10.5) / (prompt + full)
  assert share * 0.9 < shorter[1] / needed < share * 1.02
