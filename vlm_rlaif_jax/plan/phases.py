"""The programs of a stage with shapes in place of arrays, and the work in each.

The programs are the stage's own (`stages.ppo.programs` and its like); only the arrays
are missing.
"""

from vlm_rlaif_jax.plan.encoding import encoding_phases
from vlm_rlaif_jax.plan.generation import eval_phases, label_phases
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.plan.ppo import ppo_phases
from vlm_rlaif_jax.plan.training import reward_phase, supervised_phase
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.settings.stage import Run


def of(settings: Run, mesh, loras: tuple[LoraConfig, LoraConfig]) -> list[Phase]:
  """Every compiled phase of a stage.

  Args:
    loras: adapters of PPO's actor and critic, which earlier stages decide.
  """
  if isinstance(settings, PpoRun):
    return ppo_phases(settings, mesh, *loras)
  if isinstance(settings, RewardRun):
    return [
      *encoding_phases(settings, settings.model, mesh, ''),
      reward_phase(settings, mesh),
    ]
  if isinstance(settings, SftRun | InitRun):
    return [
      *encoding_phases(settings, settings.model, mesh, ''),
      supervised_phase(settings, mesh),
    ]
  if isinstance(settings, LabelRun):
    return [
      *encoding_phases(settings, settings.model, mesh, ''),
      *label_phases(settings, mesh),
    ]
  if isinstance(settings, EvalRun):
    asked = eval_phases(settings, mesh, loras[0])
    return [*encoding_phases(settings, settings.model, mesh, ''), *asked]
  raise UserError(
    f'config.stage: no plan for {settings.stage}; one of sft, label, init, reward, '
    'ppo, eval'
  )
