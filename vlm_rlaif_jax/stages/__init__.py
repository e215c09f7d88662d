"""The method: a stage turns settings into an artifact on disk; none imports another."""

import pathlib

from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.stage import Run


def run(settings: Run, workdir: str | pathlib.Path) -> dict:
  """Runs the stage that the settings are of; returns its summary."""
  return stages.load(stages.of(settings).run)(settings, workdir)
