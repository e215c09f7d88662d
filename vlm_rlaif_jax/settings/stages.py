"""All stages by name: the records that the modules beside this one leave.

A module of `settings` with a `STAGE` is a stage. Stages outside the package register
theirs: `register(StageSpec(...))` in the file that `--config` names.
"""

import functools
import importlib
import pkgutil
from typing import Any

from vlm_rlaif_jax import settings
from vlm_rlaif_jax.settings.stage import Run, StageSpec

_registered: dict[str, StageSpec] = {}


def register(spec: StageSpec) -> StageSpec:
  """Adds a stage from outside the package; one of the same name is replaced."""
  _registered[spec.name] = spec
  return spec


@functools.cache
def _packaged() -> dict[str, StageSpec]:
  names = [module.name for module in pkgutil.iter_modules(settings.__path__)]
  modules = [importlib.import_module(f'{settings.__name__}.{name}') for name in names]
  specs = [module.STAGE for module in modules if hasattr(module, 'STAGE')]
  return {spec.name: spec for spec in specs}


def every() -> dict[str, StageSpec]:
  """Returns the records of all stages by name."""
  return {**_packaged(), **_registered}


def of(run: Run) -> StageSpec:
  """Returns the record of the stage that a run is of."""
  return every()[run.stage]


def load(code: str) -> Any:
  """Imports what a record names as 'package.module:function'."""
  module, _, name = code.partition(':')
  return getattr(importlib.import_module(module), name)
