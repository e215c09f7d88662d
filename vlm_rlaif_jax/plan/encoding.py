"""Phases that encode videos."""

import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference import features
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import VIDEOS, Phase, shape_of, weight_bytes
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops


def encoding_phases(settings: Run, cfg: VlmConfig, mesh, who: str) -> list[Phase]:
  """The tower and the projector; PPO and reward read pooled tokens, SFT patches."""
  frames, vision = settings.data.frames, cfg.vision
  mesh = sharding.data_mesh(mesh.devices.flat)
  params = shardings.abstract_base(cfg, mesh, 'tower', 'projector')
  shards = sharding.batch_shards(mesh)
  videos = max(shards, VIDEOS // shards * shards)
  see, project = features.programs(Vlm(cfg), mesh, params)
  pixels = shape_of(jnp.uint8, videos * frames, vision.image_size, vision.image_size, 3)
  patches = shape_of(jnp.dtype(cfg.dtype), videos, frames, vision.patches, vision.width)
  read = {name: weight_bytes(params[name], mesh) for name in params}
  answers = settings.ppo.rollout_batch if isinstance(settings, PpoRun) else 0
  phases = [
    Phase(
      f'encode{who}',
      see,
      (params, shardings.rows(mesh, pixels)),
      params,
      (Work('tower', videos * frames * flops.tower(vision), read['tower']),),
      answers / videos,
    )
  ]
  if not isinstance(settings, SftRun):
    pooled = videos * flops.projector(vision, cfg.llama.width, frames)
    phases.append(
      Phase(
        f'project{who}',
        project,
        (params, shardings.rows(mesh, patches)),
        params,
        (Work('projector', pooled, read['projector']),),
        answers / videos,
      )
    )
  return phases
