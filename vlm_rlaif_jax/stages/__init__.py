"""The method: a stage turns settings into an artifact on disk; none imports another."""

import importlib
import pathlib

from vlm_rlaif_jax.settings.stage import Run


def run(settings: Run, workdir: str | pathlib.Path) -> dict:
  """Runs the stage that the settings are of; returns its summary."""
  module = importlib.import_module(f'vlm_rlaif_jax.stages.{settings.stage}')
  return module.run(settings, workdir)
