"""Phases of a reward model that scores the answers of an evaluation."""

import pathlib

import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_rlaif_jax.data import batches
from vlm_rlaif_jax.evals import predictions
from vlm_rlaif_jax.inference import reward_scorer
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.encoding import encoding_phases
from vlm_rlaif_jax.plan.phase import (
  CHARS_PER_TOKEN,
  Phase,
  copies,
  shape_of,
  visual_tokens,
  weight_bytes,
)
from vlm_rlaif_jax.settings.build import UserError, from_config_dict
from vlm_rlaif_jax.settings.eval import WORLD_TASKS, EvalRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.stage import MERGED
from vlm_rlaif_jax.train import reward_models, shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.reward_models import FIELD, RewardModel
from vlm_rlaif_jax.weights import adapters, artifacts, bases, model_config
from vlm_rlaif_jax.weights.artifact_paths import is_artifact
from vlm_rlaif_jax.weights.artifacts import Artifact
from vlm_rlaif_jax.weights.checkpoint import BaseRef


def find(settings: EvalRun) -> RewardModel | None:
  """Returns the reward model that the settings name, no weights read; None: no name.

  `artifact/artifact.json` of its stage and `model.json` of its base are enough.

  Raises:
    UserError: a file is missing or damaged, or it is no reward model, or the stage
      would refuse it.
  """
  inputs = settings.inputs
  if not inputs.reward:
    return None
  folder = pathlib.Path(inputs.reward)
  if is_artifact(folder):
    folder = folder.absolute().parent
  if not folder.is_dir():
    raise UserError(f'{FIELD}: {folder}: no such folder')
  info = artifacts.info(folder)
  if info.get('stage') != 'reward':
    raise reward_models.no_reward_model(folder, f'stage {info.get("stage")!r}')
  where = f'{folder}: scoring'
  scoring = from_config_dict(RewardPrompt, info.get('scoring') or {}, where)
  frames, aspect = info.get('frames') or 0, info.get('aspect') or ''
  reward_models.check_views(folder, scoring, frames, aspect, settings.data)
  base = bases.base_folder(inputs.reward_base or str(info.get('base_folder') or ''))
  sizes = base / 'model.json'
  if not sizes.is_file():
    raise UserError(
      f'{FIELD}={folder}: {sizes}, which has the sizes of its base, is not here; name '
      'the folder of that base with config.inputs.reward_base'
    )
  cfg = model_config.read_model_json(sizes)
  return RewardModel(
    folder=folder,
    artifact=Artifact({}, info),
    base=BaseRef(str(base), MERGED),
    scoring=scoring,
    cfg=reward_models.computed_as_policies(cfg, settings),
  )


def variables(settings: EvalRun, model: RewardModel, mesh: Mesh) -> dict:
  """Returns the shapes of a decoder and its adapter."""
  cfg, lora = model.cfg, adapters.lora_of(model.artifact)
  return {
    'params': shardings.abstract_base(cfg, mesh, 'llama', quant=settings.quant),
    'lora': shardings.abstract_adapter(cfg, lora, mesh),
  }


def reward_phases(settings: EvalRun, model: RewardModel, mesh: Mesh) -> list[Phase]:
  """Returns the phases that encode videos and score a batch of answers of each task.

  Answers are the longest that the tasks have. A reward model on another base than the
  policies has visual tokens of its own.
  """
  cfg, rows, buckets = model.cfg, settings.eval.batch, settings.data.buckets
  lora = adapters.lora_of(model.artifact)
  weights, visual = variables(settings, model, mesh), visual_tokens(settings, cfg)
  suffix = -(-len(model.prompt) // CHARS_PER_TOKEN)
  answer = max(predictions.longest(settings.eval, task) for task in WORLD_TASKS)
  text = reward_scorer.padded_length(
    min(buckets[0] + answer + suffix, cfg.llama.max_positions - visual),
    buckets,
    cfg.llama.max_positions - visual,
  )
  batch = {
    'ids': shape_of(jnp.int32, rows, text),
    'valid': shape_of(jnp.bool_, rows, text),
    'visual': shape_of(cfg.dtype, rows, visual, cfg.llama.width),
  }
  batch = shardings.rows(mesh, batch)
  arguments = (weights, shardings.abstract_head(cfg, mesh), batch)
  needed = rows * flops.forward(cfg.llama, lora, text + visual - 1)
  encoding = []
  policies = bases.base_folder(settings.base)
  if policies.resolve() != pathlib.Path(model.base.base).resolve():
    encoding = encoding_phases(settings, cfg, mesh, ' (reward)', resident=weights)
  return [
    *encoding,
    Phase(
      'reward',
      reward_scorer.score_program(Vlm(cfg, lora), mesh),  # type: ignore[arg-type]
      arguments,
      (arguments, copies(batch, batches.PREFETCHED)),
      (Work('reward', needed, weight_bytes(weights['params'], mesh)),),
      times=len(WORLD_TASKS),
      tuning_flag=('config.eval.batch', rows),
    ),
  ]
