"""Settings of policy initialization."""

import dataclasses

from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import (
  OptimConfig,
)
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitRun(Run):
  """Policy initialization: plain SFT of a fresh adapter on the tuned model."""

  optim: OptimConfig = OptimConfig(batch_size=128, accumulate=2)
  lora: LoraConfig = LoraConfig()
  sft: str = ''
