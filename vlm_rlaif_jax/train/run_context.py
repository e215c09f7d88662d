"""Where a run lives: its folders, its data, its mesh.

<workdir>/<size>/<stage>/    summary.json metrics.jsonl checkpoints/ artifact/
<workdir>/<size>/features/   what the frozen tower saw, shared by all stages
<workdir>/<size>/world-.../  the built-in video world, where no data are named
"""

import dataclasses
import pathlib

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.world import build
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.weights import bases, placement


class RunContext:
  """Opened once by a stage; makes the video world if the run is to use it.

  Args:
    reads_data: whether the stage reads files of data at all.
  """

  def __init__(
    self, settings: Run, workdir: str | pathlib.Path, reads_data: bool = True
  ):
    self.settings = settings
    self.root = pathlib.Path(workdir) / settings.size
    self.folder = self.root / settings.stage
    self.mesh = sharding.make_mesh(settings.mesh)
    hosts.agree(
      {
        '--config': lambda: flatten(settings),
        'code': hosts.code_fingerprint,
      }
    )
    hosts.shared_folder(self.root)
    hosts.together(lambda: hosts.claim(self.folder))
    hosts.together(lambda: check_prompts(settings))
    data = settings.data
    if reads_data and not data.root:
      build_world = lambda: build.build(
        self.root, settings.world, data.frames, progress=settings.log.progress
      )
      if hosts.is_first():
        build_world()
      hosts.barrier(f'world {self.root}')
      data = dataclasses.replace(data, root=str(build_world()))
    if reads_data:
      files = data.train, getattr(getattr(settings, 'inputs', None), 'pairs', '')
      hosts.agree({'data': lambda: hosts.data_fingerprint(data.root, *files)})
    self.data = data
    self.skipped = Skipped(data.on_bad_sample)

  def artifact(
    self, stage: str, override: str, size: str | None = None
  ) -> pathlib.Path:
    """The folder of an earlier stage: what the settings name, or the usual place."""
    if override:
      return pathlib.Path(override)
    return self.root.parent / (size or self.settings.size) / stage

  def seen(
    self, model: Vlm, base: bases.Base, held: QuantConfig | None = None
  ) -> VisualFeatures:
    """The feature store of one base.

    Args:
      held: `config.critic_quant`, how a critic's base will be held, which is checked
        here, before the long work; None: `config.quant`.
    """
    field = 'quant' if held is None else 'critic_quant'
    placement.check_quant(base.params, held or self.settings.quant, field)
    hosts.agree({'weights of the base': lambda: base.fingerprint})
    parts = {name: base.params[name] for name in ('tower', 'projector')}
    here = sharding.data_mesh(self.mesh.local_devices)
    load = lambda: placement.on_device(parts, model.cfg, here)
    return VisualFeatures(
      model, load, base.fingerprint, self.data, self.root / 'features', self.mesh
    )


def check_prompts(settings: Run) -> None:
  """Refuses names of texts that are not there: they are read after the long work."""
  for name, value in flatten(settings).items():
    if name.endswith('prompt'):
      try:
        prompts.load(value)
      except prompts.PromptError as error:
        raise prompts.PromptError(f'config.{name}: {error}') from None
