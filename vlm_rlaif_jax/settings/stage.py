"""What every stage has."""

import dataclasses
import os
from typing import Any, Literal

from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.sections import (
  SIZES,
  CheckpointConfig,
  DataConfig,
  LogConfig,
  MeshConfig,
  ProfileConfig,
  QuantConfig,
  WorldConfig,
)

MERGED = 'merged'  # in place of an SFT artifact: the base was tuned before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What every stage has.

  `base` is the folder of the pretrained weights ('': the one that comes with the tiny
  size). Paths of earlier artifacts default to '': `<workdir>/<size>/<stage>`.
  """

  size: Literal['tiny', '7b', '13b'] = '7b'
  seed: int = 42
  base: str = ''
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
    return type(self).__name__.removesuffix('Run').lower()

  @property
  def lineage(self) -> dict[str, Any]:
    """What stages that build on one another agree on, by dotted name.

    Seed, weights and network, and the data: which samples, and how a video is seen.
    Their summaries keep it.
    """
    data, place = self.data, lambda path: os.path.abspath(path) if path else ''
    which = ('train', 'holdout', 'frames', 'aspect', 'max_samples')
    world = {} if data.root else flatten(self.world, 'world.')
    return {
      'seed': self.seed,
      'base': place(self.base),
      'data.root': place(data.root),
      **{f'data.{name}': getattr(data, name) for name in which},
      **world,
      **{f'model.{name}': value for name, value in self.model.identity.items()},
    }

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

  def _check_room(self, field: str, frames: int, prompt: int, answer: int) -> None:
    """Refuses answers that would go past the last position of the decoder."""
    visual, room = frames + self.model.vision.patches, self.model.llama.max_positions
    if visual + prompt + answer > room:
      raise ValueError(
        f'{field}: {visual} visual tokens, {prompt} of a prompt and {answer} of an '
        f'answer exceed model.llama.max_positions {room}'
      )
