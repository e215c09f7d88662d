"""Finds and loads a reward model, with its own base, to score answers."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import pairs, prompts
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.reward_scorer import RewardScorer
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.settings.stage import MERGED
from vlm_rlaif_jax.train import loop, shardings
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import (
  adapters,
  artifacts,
  bases,
  placement,
  readers,
)
from vlm_rlaif_jax.weights.artifacts import Artifact
from vlm_rlaif_jax.weights.checkpoint import BaseRef

FIELD = 'config.inputs.reward'


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """A reward model on disk, its weights unread but those of the adapter.

  Attributes:
    folder: of the stage reward.
    base: what it was trained on.
    scoring: the turn that it reads after an answer.
    cfg: its network, computed in the dtype of the run.
  """

  folder: pathlib.Path
  artifact: Artifact
  base: BaseRef
  scoring: RewardPrompt
  cfg: VlmConfig

  @property
  def prompt(self) -> str:
    """The text of that turn, as it was when the model was trained."""
    text = self.artifact.info.get('scoring_text')
    if not isinstance(text, str):  # of before it was recorded
      text = prompts.load(self.scoring.prompt)
    return pairs.filled_prompt(text, self.scoring)

  @property
  def identity(self) -> dict[str, str]:
    """What its scores depend on, beside what is scored and how it is computed."""
    return {
      'weights': self.artifact.fingerprint,
      'base': str(self.artifact.info.get('base')),
      'lora': artifacts.lora_fingerprint(self.artifact.info),
      'prompt': hashlib.sha256(self.prompt.encode()).hexdigest()[:16],
    }

  @property
  def record(self) -> dict[str, str]:
    """What stands beside its numbers."""
    return {'folder': str(self.folder), **self.identity}


def find(settings: EvalRun, run: RunContext) -> RewardModel | None:
  """Returns the reward model that the settings name; None if they name none.

  Raises:
    UserError: there is none, it is no reward model, its base is not found, or it does
      not see videos as this run does.
  """
  inputs = settings.inputs
  if not inputs.reward:
    return None
  folder = pathlib.Path(inputs.reward)
  try:
    opened = readers.load_checkpoint(
      folder, base=inputs.reward_base, sft=inputs.reward_sft
    )
  except UserError as error:
    raise UserError(f'{FIELD}: {error}') from None
  artifact = opened.artifact
  if artifact is None or opened.head is None or opened.base_ref is None:
    stage = artifact.info.get('stage') if artifact is not None else ''
    what = f'stage {stage!r}' if stage else f'a checkpoint of kind {opened.kind!r}'
    raise no_reward_model(folder, what)
  check_views(folder, opened.scoring, opened.frames, opened.aspect, run.data)
  cfg = computed_as_policies(opened.network.cfg, settings)
  return RewardModel(folder, artifact, opened.base_ref, opened.scoring, cfg)


def no_reward_model(folder: pathlib.Path, what: str) -> UserError:
  """Returns the error of a folder that has something else."""
  return UserError(
    f'{FIELD}={folder}: {what} is no reward model; expected the folder of stage '
    'reward, as runs/7b/reward (python -m launch.convert makes one of PEFT files)'
  )


def check_views(
  folder: pathlib.Path,
  scoring: RewardPrompt,
  frames: int,
  aspect: str,
  data: DataConfig,
) -> None:
  """Raises UserError for a reward model that reads what an evaluation does not show.

  Args:
    frames, aspect: that it was trained with; 0 and '' where that is not recorded.
    data: of the evaluation.
  """
  if scoring.placeholder == 'captions':
    raise UserError(
      f'{FIELD}={folder}: reads a narrative of the video beside an answer '
      '(scoring.placeholder=captions), which evaluation does not write; name a reward '
      'model that was trained without'
    )
  for name, here, trained in (
    ('frames', data.frames, frames),
    ('aspect', data.aspect, aspect),
  ):
    if trained and trained != here:
      raise UserError(
        f'{FIELD}={folder}: trained with data.{name}={trained}, this run has {here}; '
        'it would see other videos'
      )


def computed_as_policies(cfg: VlmConfig, settings: EvalRun) -> VlmConfig:
  """Returns the network of a reward model in the dtype of the run.

  Where it is that of the policies, it has the features that they have.
  """
  if cfg.identity == settings.model.identity:
    return settings.model
  return dataclasses.replace(cfg, dtype=settings.model.dtype, remat='none')


def load(
  model: RewardModel, settings: EvalRun, run: RunContext, videos: Sequence[Video]
) -> RewardScorer:
  """Returns a reward model on the devices, with the visual tokens of videos.

  Its base is on the devices as `config.quant` says; no policy should be there, too.

  Raises:
    DataError: a video that the policies saw cannot be read any more.
  """
  base = bases.load(model.base.base, model.cfg)
  base = bases.tuned(base, model.base.sft or MERGED, model.cfg)
  expected = model.artifact.info.get('base')
  if base.fingerprint != expected:
    raise artifacts.ArtifactError(
      f'{FIELD}={model.folder}: trained on weights {expected}, and {model.base} is '
      f'{base.fingerprint}'
    )
  lora = adapters.lora_of(model.artifact)
  layout = shardings.adapter(model.cfg, lora, run.mesh)
  variables = {
    'params': placement.on_device(
      {'llama': base.params['llama']}, model.cfg, run.mesh, quant=settings.quant
    ),
    'lora': sharding.put(model.artifact.parts['lora'], layout),
  }
  head = heads.ScalarHead(
    **{k: jnp.asarray(v, jnp.float32) for k, v in model.artifact.parts['head'].items()}
  )
  network = Vlm(model.cfg, lora)
  features = run.features(network, base)
  bad = features.encode(videos, 'tokens', _bar(settings, 'encoding videos', 'video'))
  if bad:
    raise DataError(next(iter(bad.values())))
  return RewardScorer(
    network,
    variables,
    sharding.put(head, shardings.head(run.mesh)),
    base.tokenizer,
    pairs.suffix_ids(base.tokenizer, model.prompt),
    features,
    run.data.buckets,
    settings.eval.batch,
    _bar(settings, 'scoring', 'batch'),
  )


def _bar(settings: EvalRun, title: str, unit: str) -> Callable[[Iterable, int], Any]:
  """Returns what wraps a sequence of known length in a progress bar."""
  return loop.bar(f'eval reward: {title}', settings.log, unit)
