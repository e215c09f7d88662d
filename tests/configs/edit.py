"""Configs by stage, as they are and with fields changed."""

import importlib
from typing import Any

from ml_collections import ConfigDict


def config(stage: str, arg: str = '') -> ConfigDict:
  """Returns what `--config configs/<stage>.py:<arg>` makes."""
  return importlib.import_module(f'configs.{stage}').get_config(arg)


def edited(stage: str, **changes: Any) -> ConfigDict:
  """Returns a config with fields set: `ppo__kl_coef=1.0` is `config.ppo.kl_coef`."""
  result = config(stage)
  with result.unlocked():
    for name, value in changes.items():
      *path, last = name.split('__')
      node = result
      for part in path:
        node = node[part]
      node[last] = value
  return result
