"""Settings of policy initialization."""

import dataclasses

from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import OptimConfig, optimizer_batches
from vlm_rlaif_jax.settings.stage import Requirement, Run, SftInput, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitRun(Run):
  """Policy initialization: plain SFT of a fresh adapter on the tuned model."""

  optim: OptimConfig = OptimConfig(batch_size=128, accumulate=2)
  lora: LoraConfig = LoraConfig()
  inputs: SftInput = SftInput()


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  return f'{summary["samples"]} samples, {summary["steps"]} steps'


STAGE = StageSpec(
  settings=InitRun,
  run='vlm_rlaif_jax.stages.init:run',
  summary_line=summary_line,
  requires=lambda settings: [Requirement('sft', settings.size, 'sft')],
  data_files=lambda settings: ('init',),
  parts=(),
  phases='vlm_rlaif_jax.plan.training:init_phases',
  resident='vlm_rlaif_jax.plan.training:supervised_resident',
  batches=optimizer_batches,
)
