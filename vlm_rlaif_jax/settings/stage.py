"""What every stage has: the settings of a run, and the record of the stage."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.constants import SIZES
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.sections import (
  CheckpointConfig,
  DataConfig,
  LogConfig,
  MeshConfig,
  ProfileConfig,
  QuantConfig,
  WorldConfig,
)

MERGED = 'merged'  # in place of an SFT artifact: the base was tuned before
RANDOM = 'random'  # in place of a base: random weights, which launch.rehearse runs on


@dataclasses.dataclass(frozen=True)
class Requirement:
  """An artifact of an earlier stage that a run reads.

  Attributes:
    stage: that makes it.
    size: of the network that it belongs to.
    field: of `config.inputs`, by which a user names another place than
      `<workdir>/<size>/<stage>`; '' if there is none.
    of_critic: it belongs to the critic of PPO, not to the policy.
    optional: read where it exists, not made where it does not.
  """

  stage: str
  size: str
  field: str
  of_critic: bool = False
  optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
  """The record of a stage that launch, plan, weights and reports read.

  Code is named as 'package.module:function', so that reading a record loads no JAX.

  Attributes:
    settings: the class of its settings; its name gives that of the stage.
    run: (settings, workdir) -> summary; makes the artifact.
    summary_line: summary -> what the terminal prints when the stage is done.
    requires: settings -> artifacts that must exist first, in the order of making.
    data_files: settings -> names in `data.readers.FILES` whose contents decide what is
      computed, so that a changed file is noticed on resume.
    parts: of its artifact, beside `lora`; None where the stage leaves no adapter.
    result: the file below its folder that says that the artifact is there.
    phases: (settings, mesh, loras) -> programs for `launch.plan`; '' if it has none.
    resident: (settings, mesh, loras) -> shapes that stay on the devices from the first
      step to the last; '' if they are not counted.
    batches: settings -> (dotted name, rows) that the devices have to share.
    then: stages that follow in the tiny size.
    one_process: it cannot be shared by several processes.
  """

  settings: 'type[Run]'
  run: str
  summary_line: Callable[[dict[str, Any]], str]
  requires: Callable[[Any], list[Requirement]] = lambda settings: []
  data_files: Callable[[Any], tuple[str, ...]] = lambda settings: ()
  parts: tuple[str, ...] | None = None
  result: str = 'artifact/artifact.json'
  phases: str = ''
  resident: str = ''
  batches: Callable[[Any], list[tuple[str, int]]] = lambda settings: []
  then: tuple[str, ...] = ()
  one_process: bool = False

  @property
  def name(self) -> str:
    return name_of(self.settings)


def name_of(settings: 'type[Run]') -> str:
  """Returns the name of the stage with these settings: 'sft' of `SftRun`."""
  return settings.__name__.removesuffix('Run').lower()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftInput:
  """The artifact that most stages read; '' is `<workdir>/<size>/sft`."""

  sft: str = ''  # folder of stage sft; 'merged': the base was tuned before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What every stage has.

  `base` is the folder of the pretrained weights ('': the one that comes with the tiny
  size; `RANDOM`: none is read). Paths of earlier artifacts are in the section `inputs`
  of the stages that read any; '' is `<workdir>/<size>/<stage>`.
  """

  # size of the network; chosen after the colon: `--config configs/sft.py:7b`
  size: Literal['tiny', 'small', '7b', '13b'] = '7b'
  seed: int = 42  # seed of all random draws but those of the world
  base: str = ''  # folder of the pretrained weights; '': the weights of the tiny size
  model: VlmConfig = VlmConfig()
  quant: QuantConfig = QuantConfig()
  data: DataConfig = DataConfig()
  world: WorldConfig = WorldConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()
  profile: ProfileConfig = ProfileConfig()

  @property
  def stage(self) -> str:
    return name_of(type(self))

  @property
  def lineage(self) -> dict[str, Any]:
    """What stages that build on one another agree on, by dotted name.

    Seed, weights and network, and the data: which samples, and how a video is seen.
    Their summaries keep it.
    """
    data, place = self.data, lambda path: os.path.abspath(path) if path else ''
    which = ('train', 'holdout', 'frames', 'aspect', 'max_samples')
    world = {} if data.root else flatten(self.world, 'world.')
    lists = {k: list(v) for k, v in world.items() if isinstance(v, tuple)}  # as in JSON
    return {
      'seed': self.seed,
      'base': place(self.base),
      'data.root': place(data.root),
      **{f'data.{name}': getattr(data, name) for name in which},
      **world,
      **lists,
      **{f'model.{name}': value for name, value in self.model.identity.items()},
    }

  def inputs_for(self, other: Requirement) -> dict[str, Any]:
    """Returns what another stage, made for this run, takes over from it.

    Sections that it does not have are left out by the caller.
    """
    shared = ('seed', 'base', 'model', 'data', 'world', 'mesh', 'log')
    inputs = getattr(self, 'inputs', None)
    own = dataclasses.asdict(inputs) if inputs else {}
    return {**{name: getattr(self, name) for name in shared}, 'inputs': own}

  def completed(self, configured: Callable[[], 'Run']) -> 'Run':
    """Returns the settings with what follows from them filled in.

    Args:
      configured: makes the same stage and size as its config file has them.
    """
    del configured
    return self

  def __post_init__(self):
    within(self, '[0, 4294967295]', 'seed')  # JAX takes 32 bits of it
    named = self.model.name
    if named in SIZES and named != self.size:
      raise ValueError(
        f'size: the network is that of {named!r}, got {self.size!r}; a size is chosen '
        f'after the colon: --config configs/{self.stage}.py:{self.size}'
      )
    visual = self.data.frames + self.model.vision.patches
    longest = self.data.buckets[-1]
    room = self.model.llama.max_positions
    if visual + longest > room:
      raise ValueError(
        f'data.buckets: {longest} text and {visual} visual tokens exceed '
        f'model.llama.max_positions {room}'
      )

  def _check_room(
    self, field: str, frames: int, prompt: int, answer: int, network: str = 'model'
  ) -> None:
    """Refuses answers that would go past the last position of a decoder.

    Args:
      network: section of the settings that the decoder is in.
    """
    cfg: VlmConfig = getattr(self, network)
    visual, room = frames + cfg.vision.patches, cfg.llama.max_positions
    if visual + prompt + answer > room:
      raise ValueError(
        f'{field}: {visual} visual tokens, {prompt} of a prompt and {answer} of an '
        f'answer exceed {network}.llama.max_positions {room}'
      )
