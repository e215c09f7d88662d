"""Layouts by name: the mesh and the batches for given chips, `...:7b,layout=v5e-16`.

Bases are replicated where a chip has room for them, and only the batch is split;
elsewhere they are sharded over `tensor`, since decoding then reads shards, where `fsdp`
would gather every weight for every token.
"""

import dataclasses
import types
from typing import TypeVar

from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import ConfigError, parse_arg
from vlm_rlaif_jax.settings.sections import MeshConfig
from vlm_rlaif_jax.settings.stage import Run

T = TypeVar('T', bound=Run)

# Chips with room for what a backward pass reads (2.5 MB a position of the 7B model, 3.9
# of the 13B one) do not compute it again. PPO has four rows a chip in memory for that;
# SFT and the reward model of 13B have no room.
KEEP = {'7b.model': {'remat': 'names'}, 'critic': {'remat': 'names'}}
KEEP_IN_PPO = {'ppo.model': {'remat': 'names'}, 'critic': {'remat': 'names'}}
GPUS_80 = {
  'mesh': MeshConfig(),
  **KEEP,
  'ppo': {'rollout_weights': 'merged', 'micro_batch': 32},
  '13b.label': {'batch': 64},  # decoding has a copy of the layers, 26 GB
  'eval': {'batch': 256},
}

LAYOUTS: dict = {
  '': {'mesh': MeshConfig()},
  'a100x8': GPUS_80,
  'a100x8-fsdp': {'mesh': MeshConfig(data=1, fsdp=-1)},
  'a100x8-tensor': {'mesh': MeshConfig(data=-1, tensor=8), 'ppo': {'micro_batch': 16}},
  # No room for merged weights: a rollout reads the base in NF4, in two rounds.
  'a100-40x8': {
    'mesh': MeshConfig(),
    **KEEP_IN_PPO,
    'ppo': {'sample_batch': 128, 'micro_batch': 16},
    'eval': {'batch': 64},
  },
  'h100x8': GPUS_80,
  'h200x8': {
    'mesh': MeshConfig(),
    **KEEP,
    'ppo': {'rollout_weights': 'merged'},
    'eval': {'batch': 256},
  },
  'v5p-8': {'mesh': MeshConfig(), **KEEP, 'ppo': {'micro_batch': 32}},
  'v6e-8': {
    'mesh': MeshConfig(data=-1, tensor=4),
    **KEEP_IN_PPO,
    'ppo': {'sample_batch': 64, 'micro_batch': 8},
    'label': {'batch': 64},
  },
  'v5e-16': {
    'mesh': MeshConfig(data=-1, tensor=8),
    **KEEP_IN_PPO,
    'ppo': {'sample_batch': 64, 'micro_batch': 4},
    'label': {'batch': 32},
  },
  'v5e-256': {
    'mesh': MeshConfig(data=-1, tensor=8),
    **KEEP_IN_PPO,
    'ppo': {'sample_batch': 0, 'micro_batch': 64},
    'reward.optim': {'batch_size': 32},  # 32 shards; the reference's batch has 16 pairs
  },
}
NAMES = tuple(LAYOUTS)


def parse(
  arg: str, sizes: tuple[str, ...], **options: tuple[str, tuple[str, ...]]
) -> types.SimpleNamespace:
  """Parses what follows a config's colon: size, layout and the config's options."""
  values = parse_arg(arg, size=('tiny', sizes), layout=('', NAMES), **options)
  if values.size in constants.WORLD_SIZES and values.layout:
    raise ConfigError(
      f'--config argument layout={values.layout}: layouts are for the real sizes; '
      f'the mesh of {values.size} is --config.mesh.fsdp=2 and the like'
    )
  return values


def apply(run: T, name: str) -> T:
  """Returns a run with a named layout; sections that it does not have are skipped."""
  changes = {}
  for section, value in LAYOUTS[name].items():
    for only in (run.stage, run.size):  # of one stage, of one size
      section = section.removeprefix(f'{only}.')
    current = getattr(run, section, None)
    if dataclasses.is_dataclass(current) and not isinstance(current, type):
      partial = isinstance(value, dict)
      changes[section] = dataclasses.replace(current, **value) if partial else value
  return dataclasses.replace(run, **changes)
