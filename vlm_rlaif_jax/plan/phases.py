"""The programs of a stage with shapes in place of arrays, and the work in each.

The programs are the stage's own (`rl.algorithm.programs` and its like); only the arrays
are missing. `settings.<stage>.STAGE` names the functions that describe them.
"""

from typing import Any

from jax.sharding import Mesh

from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.stage import Run

Loras = tuple[LoraConfig, LoraConfig]


def of(settings: Run, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns every compiled phase of a stage.

  Args:
    loras: adapters of PPO's actor and critic, which earlier stages decide.

  Raises:
    UserError: the stage has no plan.
  """
  spec = stages.of(settings)
  if not spec.phases:
    planned = [name for name, other in stages.every().items() if other.phases]
    raise UserError(
      f'config.stage: no plan for {spec.name}; one of {", ".join(planned)}'
    )
  return stages.load(spec.phases)(settings, mesh, loras)


def resident(settings: Run, mesh: Mesh, loras: Loras) -> Any:
  """Returns shapes of what stays on the devices from the first step to the last."""
  code = stages.of(settings).resident
  return stages.load(code)(settings, mesh, loras) if code else ()
