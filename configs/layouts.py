"""Layouts by name: how a run lies on the chips it is given, `...:7b,layout=v5e-16`.

The bases lie as wide as memory asks for and no wider: replicated where a chip holds
them (only the batch is split), else sharded over `tensor`, whose decoding reads shards
where `fsdp` would gather every weight for every token.
"""

import dataclasses

from vlm_rlaif_jax.settings.build import ConfigError, parse_arg
from vlm_rlaif_jax.settings.sections import MeshConfig

LAYOUTS: dict = {
  '': {'mesh': MeshConfig()},
  'a100x8': {'mesh': MeshConfig(), 'ppo': {'rollout_weights': 'merged'}},
  'a100x8-fsdp': {'mesh': MeshConfig(data=1, fsdp=-1)},
  'a100x8-tensor': {'mesh': MeshConfig(data=-1, tensor=8), 'ppo': {'micro_batch': 16}},
  'h100x8': {'mesh': MeshConfig(), 'ppo': {'rollout_weights': 'merged'}},
  'h200x8': {'mesh': MeshConfig(), 'ppo': {'rollout_weights': 'merged'}},
  'v5p-8': {'mesh': MeshConfig(), 'ppo': {'sample_batch': 128}},
  'v6e-8': {
    'mesh': MeshConfig(data=-1, tensor=4),
    'ppo': {'sample_batch': 64, 'micro_batch': 8},
    'label': {'batch': 64},
  },
  'v5e-16': {
    'mesh': MeshConfig(data=-1, tensor=8),
    'ppo': {'sample_batch': 64, 'micro_batch': 8},
    'label': {'batch': 32},
  },
  'v5e-256': {
    'mesh': MeshConfig(data=-1, tensor=8),
    'ppo': {'sample_batch': 0, 'micro_batch': 64},
    'reward.optim': {'batch_size': 32},  # 32 shards; the reference's batch has 16 pairs
  },
}
NAMES = tuple(LAYOUTS)


def parse(arg: str, sizes: tuple[str, ...], **known):
  """What follows a config's colon: size, layout and what else it knows."""
  values = parse_arg(arg, size=('tiny', sizes), layout=('', NAMES), **known)
  if values.size == 'tiny' and values.layout:
    raise ConfigError(
      f'--config argument layout={values.layout}: layouts are for the real sizes; '
      f'the mesh of the tiny one is --config.mesh.fsdp=2 and the like'
    )
  return values


def apply(run, name: str):
  """A run laid out by name; a section that the run does not have is left out."""
  changes = {}
  for section, value in LAYOUTS[name].items():
    section = section.removeprefix(f'{run.stage}.')  # of this stage alone
    known = getattr(run, section, None)
    if dataclasses.is_dataclass(known) and not isinstance(known, type):
      changed = isinstance(value, dict)
      changes[section] = dataclasses.replace(known, **value) if changed else value
  return dataclasses.replace(run, **changes)
