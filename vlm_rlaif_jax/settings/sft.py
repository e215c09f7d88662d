"""Settings of supervised fine-tuning."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import (
  OptimConfig,
)
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
  """Short answers first, then long ones; one pass each."""

  order: Literal['short_long', 'mixed', 'long_short'] = 'short_long'
  stages: tuple[str, ...] = ('short', 'long')
  short_words: int = 12  # the longest answer of a short sample, where one file has both

  def __post_init__(self):
    within(self, '>= 0', 'short_words')
    unknown = set(self.stages) - {'short', 'long'}
    if unknown or not self.stages:
      raise ValueError(f'stages: choose some of short, long; got {self.stages}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(Run):
  """Supervised fine-tuning: LoRA and the projector."""

  optim: OptimConfig = OptimConfig()
  lora: LoraConfig = LoraConfig(rank=32, alpha=32.0, targets=('q', 'k', 'v', 'o'))
  projector_lr: float = 0.0  # of the projector; 0: the learning rate of the adapter
  sft: SftConfig = SftConfig()

  def __post_init__(self):
    super().__post_init__()
    within(self, '>= 0', 'projector_lr')
