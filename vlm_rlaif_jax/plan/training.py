"""Phases of supervised stages and of the reward model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_rlaif_jax.data import batches
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.encoding import encoding_phases
from vlm_rlaif_jax.plan.phase import (
  Phase,
  copies,
  shape_of,
  visual_tokens,
  weight_bytes,
)
from vlm_rlaif_jax.plan.phases import Loras
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import optim, pairwise, shardings, step_weights, supervised
from vlm_rlaif_jax.train.profiling import flops

# Batches beside the one that a step reads: of the step before, and prefetched ones.
OTHER_BATCHES = 1 + batches.PREFETCHED


def _state(cfg: VlmConfig, settings: Any, mesh: Mesh, names: tuple[str, ...]):
  """Returns a training state as shapes, its optimizer and its learning rate."""
  kinds = {
    'lora': lambda: shardings.abstract_adapter(
      cfg, settings.lora, mesh, settings.optim.adapter_dtype
    ),
    'projector': lambda: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding),
      shardings.abstract_base(cfg, mesh, 'projector')['projector'],
    ),
    'head': lambda: shardings.abstract_head(cfg, mesh),
  }
  optimizer = optim.make_optimizer(settings.optim)
  state = shardings.abstract_state({n: kinds[n]() for n in names}, optimizer, mesh)
  return state, optimizer, optim.learning_rate(settings.optim, 1000)


def sft_phases(settings: SftRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases of SFT, which trains the projector and so reads patches."""
  return [
    *encoding_phases(settings, settings.model, mesh, pools=False),
    supervised_phase(settings, mesh),
  ]


def init_phases(settings: InitRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases of policy initialization, which reads visual tokens."""
  return [
    *encoding_phases(settings, settings.model, mesh),
    supervised_phase(settings, mesh),
  ]


def reward_phases(settings: RewardRun, mesh: Mesh, loras: Loras) -> list[Phase]:
  """Returns the phases of the reward model."""
  return [
    *encoding_phases(settings, settings.model, mesh),
    reward_phase(settings, mesh),
  ]


def supervised_resident(settings: SftRun | InitRun, mesh: Mesh, loras: Loras) -> Any:
  """Returns the training state and the frozen decoder as shapes."""
  return supervised_phase(settings, mesh).arguments[:2]


def reward_resident(settings: RewardRun, mesh: Mesh, loras: Loras) -> Any:
  """Returns the training state and the frozen decoder as shapes."""
  return reward_phase(settings, mesh).arguments[:2]


def supervised_phase(settings: SftRun | InitRun, mesh: Mesh) -> Phase:
  """Returns the optimizer step of SFT or of policy initialization.

  Where the projector trains too, the step reads patch features.
  """
  projects = 'projector' in (stages.of(settings).parts or ())
  cfg, batch = settings.model, settings.optim.batch_size
  text = settings.data.buckets[-1]
  names = ('lora', 'projector') if projects else ('lora',)
  state, optimizer, rate = _state(cfg, settings, mesh, names)
  frozen = shardings.abstract_base(cfg, mesh, 'llama', quant=settings.quant)
  model = Vlm(cfg, settings.lora)
  program = supervised.program(
    functools.partial(supervised.loss, model),
    optimizer,
    rate,
    settings.optim.accumulate,
    mesh,
    state,
    frozen,
    step_weights.weigh_by(step_weights.targets_of, settings.optim.loss_mean),
  )
  vision, frames = cfg.vision, settings.data.frames
  visual = (
    {'patches': shape_of(cfg.dtype, batch, frames, vision.patches, vision.width)}
    if projects
    else {
      'visual': shape_of(
        cfg.dtype, batch, visual_tokens(settings, cfg), cfg.llama.width
      )
    }
  )
  rows = {
    'ids': shape_of(jnp.int32, batch, text), 'target': shape_of(jnp.bool_, batch, text)
  }  # fmt: skip
  arguments = (state, frozen, shardings.rows(mesh, {**rows, **visual}))
  count = flops.supervised_step(
    cfg.llama, settings.lora, vision, batch, text, frames, projects
  )
  return Phase(
    settings.stage,
    program,
    arguments,
    (arguments, copies(arguments[2], OTHER_BATCHES)),
    (_update(count, batch, frozen, settings, mesh),),
    tuning_flag=('config.optim.accumulate', settings.optim.accumulate),
  )


def _update(
  count: tuple[float, float, float],
  sequences: int,
  frozen: Any,
  settings: Any,
  mesh: Mesh,
  scores_first: bool = False,
) -> Work:
  """Returns the work of an optimizer step.

  Args:
    count: its positions, the operations that it needs, and those of a forward pass.
    scores_first: whether it computes a forward pass before those of the gradients.
  """
  positions, needed, forward = count
  cfg, remat = settings.model.llama, settings.model.remat
  by_names = flops.recomputed_by_names(cfg, settings.lora, int(positions) // sequences)
  recomputed = {'full': forward, 'names': sequences * by_names}.get(remat, 0.0)
  passes = 2 + (remat == 'full') + scores_first
  read = passes * settings.optim.accumulate * weight_bytes(frozen, mesh)
  return Work('update', needed, read, recomputed + scores_first * forward)


def reward_phase(settings: RewardRun, mesh: Mesh) -> Phase:
  """Returns the optimizer step of the reward model."""
  cfg, batch = settings.model, settings.optim.batch_size
  text, visual = settings.data.buckets[-1], visual_tokens(settings, cfg)
  state, optimizer, rate = _state(cfg, settings, mesh, ('lora', 'head'))
  frozen = shardings.abstract_base(cfg, mesh, 'llama', quant=settings.quant)
  step, _ = pairwise.programs(
    settings, Vlm(cfg, settings.lora), optimizer, rate, mesh, state, frozen
  )
  rows = {
    'ids': shape_of(jnp.int32, batch, 2, text),
    'valid': shape_of(jnp.bool_, batch, 2, text),
    'preferred': shape_of(jnp.int32, batch),
    'weight': shape_of(jnp.float32, batch),
    'visual': shape_of(cfg.dtype, batch, visual, cfg.llama.width),
  }
  arguments = (state, frozen, shardings.rows(mesh, rows))
  count = flops.pair_step(cfg.llama, settings.lora, batch, text, visual)
  scores_first = pairwise.scores_first(settings)
  return Phase(
    'reward',
    step,
    arguments,
    (arguments, copies(arguments[2], OTHER_BATCHES)),
    (_update(count, 2 * batch, frozen, settings, mesh, scores_first),),
    tuning_flag=('config.optim.accumulate', settings.optim.accumulate),
  )
