"""Where a run lives: its folders, its data, its mesh.

<workdir>/<size>/<stage>/    summary.json metrics.jsonl checkpoints/ artefact/
<workdir>/<size>/features/   what the frozen tower saw, shared by all stages
<workdir>/<size>/world-.../  the built-in video world, where no data are named
"""

import dataclasses
import pathlib

import jax

from vlm_rlaif_jax.config.stages import Run
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.world import build
from vlm_rlaif_jax.encode import Seen
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.train import bases


class Workspace:
  """Opened once by a stage; makes the video world if the run is to use it."""

  def __init__(self, settings: Run, workdir: str | pathlib.Path):
    self.settings = settings
    self.root = pathlib.Path(workdir) / settings.size
    self.folder = self.root / settings.stage
    self.folder.mkdir(parents=True, exist_ok=True)
    self.mesh = sharding.make_mesh(settings.mesh)
    data = settings.data
    if not data.root:
      world = build.build(
        self.root, settings.world, data.frames, progress=settings.log.progress
      )
      data = dataclasses.replace(data, root=str(world))
    self.data = data
    self.skipped = Skipped(data.on_bad_sample)

  def artefact(
    self, stage: str, override: str, size: str | None = None
  ) -> pathlib.Path:
    """The folder of an earlier stage: what the settings name, or the usual place."""
    if override:
      return pathlib.Path(override)
    return self.root.parent / (size or self.settings.size) / stage

  def seen(self, model: Vlm, base: bases.Base) -> Seen:
    """The feature store of one base."""
    params = {
      name: bases.on_device({name: base.params[name]}, model.cfg, self.mesh)[name]
      for name in ('tower', 'projector')
    }
    return Seen(
      model, params, base.fingerprint, self.data, self.root / 'features', self.mesh
    )

  def is_first_host(self) -> bool:
    return jax.process_index() == 0
