"""Settings of supervised fine-tuning."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import OptimConfig, optimizer_batches
from vlm_rlaif_jax.settings.stage import Run, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
  """Short answers first, then long ones; one pass each."""

  # order of the samples with short and with long answers
  order: Literal['short_long', 'mixed', 'long_short'] = 'short_long'
  stages: tuple[str, ...] = ('short', 'long')  # data files that are used: short, long
  # words of the longest answer of a short sample, where one file has both
  short_words: int = 12

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
  projector_lr: float = 0.0  # learning rate of the projector; 0: that of the adapter
  sft: SftConfig = SftConfig()

  def __post_init__(self):
    super().__post_init__()
    within(self, '>= 0', 'projector_lr')


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  return (
    f'{sum(summary["samples"].values())} samples, {summary["steps"]} steps, '
    f'{summary["trainable"]:,} trained parameters'
  )


STAGE = StageSpec(
  settings=SftRun,
  run='vlm_rlaif_jax.stages.sft:run',
  summary_line=summary_line,
  data_files=lambda settings: settings.sft.stages,
  parts=('projector',),
  phases='vlm_rlaif_jax.plan.training:sft_phases',
  resident='vlm_rlaif_jax.plan.training:supervised_resident',
  batches=optimizer_batches,
)
