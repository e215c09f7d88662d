"""Phases that encode videos, and texts."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference import encoder, text_encoder
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import VIDEOS, Phase, shape_of, weight_bytes
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.weights import network_shapes


def videos_at_once(mesh: Mesh) -> int:
  """Returns the videos of one batch over all devices: every device has as many."""
  devices = mesh.devices.size
  return max(devices, VIDEOS // devices * devices)


def encoding_phases(
  settings: Run,
  cfg: VlmConfig,
  mesh: Mesh,
  suffix: str = '',
  pools: bool = True,
  answers: int = 0,
  resident: Any = (),
) -> list[Phase]:
  """Returns the phases that encode a batch of videos: the tower and the projector.

  Args:
    suffix: of their names, where a stage encodes by two networks.
    pools: whether the stage reads visual tokens; SFT reads the tower's patches.
    answers: answers an iteration of PPO, each about a video; 0 elsewhere.
    resident: what else is on the devices meanwhile, as shapes.
  """
  frames, vision = settings.data.frames, cfg.vision
  videos, mesh = videos_at_once(mesh), sharding.data_mesh(mesh.devices.flat)
  params = shardings.abstract_base(cfg, mesh, 'tower', 'projector')
  see, project = encoder.programs(Vlm(cfg), mesh, params)
  pixels = shape_of(jnp.uint8, videos * frames, vision.image_size, vision.image_size, 3)
  patches = shape_of(jnp.dtype(cfg.dtype), videos, frames, vision.patches, vision.width)
  read = {name: weight_bytes(params[name], mesh) for name in params}
  phases = [
    Phase(
      f'encode{suffix}',
      see,
      (params, shardings.rows(mesh, pixels)),
      (params, resident),
      (Work('tower', videos * frames * flops.tower(vision), read['tower']),),
      answers / videos,
    )
  ]
  if pools:
    pooled = videos * flops.projector(vision, cfg.llama.width, frames)
    phases.append(
      Phase(
        f'project{suffix}',
        project,
        (params, shardings.rows(mesh, patches)),
        (params, resident),
        (Work('projector', pooled, read['projector']),),
        answers / videos,
      )
    )
  return phases


def text_phase(settings: EvalRun, mesh: Mesh, texts: int) -> Phase:
  """Returns the phase that encodes a batch of texts of the longest kind.

  Args:
    texts: of all benchmarks; a text over the context counts once.
  """
  cfg, joint = settings.model.text, settings.model.joint
  shapes = network_shapes.abstract_text(cfg, joint)
  params = sharding.abstract(shapes, sharding.replicated(mesh))
  shards = sharding.batch_shards(mesh)
  rows = max(shards, settings.text_scores.text_batch // shards * shards)
  ids = shardings.rows(mesh, shape_of(jnp.int32, rows, cfg.context))
  done = rows * flops.text_tower(cfg, cfg.context)
  return Phase(
    'texts',
    text_encoder.text_program(cfg, joint, mesh),
    (params, ids),
    params,
    (Work('text tower', done, weight_bytes(params, mesh)),),
    texts / rows,
  )
