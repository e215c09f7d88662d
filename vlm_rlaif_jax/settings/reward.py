"""Settings of the reward model."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import (
  OptimConfig,
)
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardPrompt:
  """The turn that is appended to an answer before it is scored."""

  prompt: str = 'reward'
  placeholder: Literal['empty', 'literal', 'captions'] = 'empty'  # of {factual_prompt}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
  """Pairwise (Bradley-Terry) loss with a centering term."""

  centering: float = 1e-3  # weight of |mean(r1 + r2)|
  eval_pairs: int = 500  # held out
  eval_every: int = 400  # steps; 0: after the last one only
  filter_too_long: bool = False  # drop pairs over the last bucket instead of stopping

  def __post_init__(self):
    within(self, '>= 0', 'centering', 'eval_every')
    within(self, '>= 1', 'eval_pairs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(Run):
  optim: OptimConfig = OptimConfig(
    learning_rate=2e-5, schedule='constant', batch_size=16, clip_norm=0.3
  )
  lora: LoraConfig = LoraConfig()
  reward: RewardConfig = RewardConfig()
  scoring: RewardPrompt = RewardPrompt()
  sft: str = ''
  pairs: str = ''
