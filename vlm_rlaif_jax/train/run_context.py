"""What a stage runs in: its folders, its data, its mesh.

<workdir>/<size>/<stage>/    summary.json metrics.jsonl checkpoints/ artifact/
<workdir>/<size>/world-.../  the built-in video world, where no data are named
<workdir>/features/          of frozen towers, shared by all stages and sizes
"""

import dataclasses
import functools
import pathlib
from typing import Any

from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.world import build
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train import console, sinks
from vlm_rlaif_jax.weights import artifacts, bases, placement

JUDGE_PROMPTS = ('options_prompt', 'claims_prompt')  # that may have a narrative


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
    hosts.together(lambda: bases.weight_files(settings.base, settings.model))
    hosts.together(lambda: sinks.check(settings.log))
    data = settings.data
    if reads_data and not data.root:
      build_world = functools.partial(
        build.build,
        self.root,
        settings.world,
        data.frames,
        progress=settings.log.progress,
      )
      if hosts.is_first():
        build_world()
      hosts.barrier(f'world {self.root}')
      data = dataclasses.replace(data, root=str(build_world()))
    if reads_data:
      files = data.train, getattr(getattr(settings, 'inputs', None), 'pairs', '')
      hosts.agree({'data': lambda: hosts.data_fingerprint(data.root, *files)})
    self.data = data
    self.skipped = Skipped(data.on_bad_sample, say=console.say)

  def artifact(
    self, stage: str, override: str, size: str | None = None
  ) -> pathlib.Path:
    """Returns the folder of an earlier stage: as named, or at its usual place."""
    if override:
      return pathlib.Path(override)
    return self.root.parent / (size or self.settings.size) / stage

  def features(
    self, model: Vlm, base: bases.Base, quant: QuantConfig | None = None
  ) -> VisualFeatures:
    """Returns the visual features of videos by one base.

    Args:
      quant: `config.critic_quant` for a critic's base, which is checked here, before
        the long work; None: `config.quant`.
    """
    field = 'quant' if quant is None else 'critic_quant'
    placement.check_quant(base.params, quant or self.settings.quant, field)
    hosts.agree({'weights of the base': lambda: base.fingerprint})
    check_aspect(base, self.settings.base, self.data.aspect)
    parts = {name: base.params[name] for name in ('tower', 'projector')}
    local = sharding.data_mesh(self.mesh.local_devices)
    load = functools.partial(placement.on_device, parts, model.cfg, local)
    prints = {name: trees.fingerprint(part) for name, part in parts.items()}
    folder = self.root.parent / 'features'
    return VisualFeatures(model, load, prints, self.data, folder, self.mesh)

  def finish(self, artifact: artifacts.Artifact, summary: dict[str, Any]) -> dict:
    """Saves the artifact of the stage and its summary, which says that it is done."""
    folder, data = self.folder / 'artifact', self.settings.data
    views = {'aspect': data.aspect, 'frames': data.frames}
    artifacts.drop_summary(self.folder)
    artifacts.save(
      folder, dataclasses.replace(artifact, info={**artifact.info, **views})
    )
    summary = {
      'stage': self.settings.stage,
      'lineage': self.settings.lineage,
      **summary,
      'rows': self.skipped.files,
      'skipped': self.skipped.reasons,
      'artifact': str(folder),
      'fingerprint': artifact.fingerprint,
    }
    artifacts.write_summary(self.folder, summary)
    return summary


def check_aspect(base: bases.Base, name: str, aspect: str) -> None:
  """Raises ArtifactError if a base was trained on frames of another shape.

  Args:
    name: of the base, as the settings have it.
  """
  if base.aspect and base.aspect != aspect:
    raise artifacts.ArtifactError(
      f'config.data.aspect is {aspect!r}; {bases.base_folder(name)}, or the SFT on it, '
      f'was trained with {base.aspect!r}: use --config.data.aspect={base.aspect}'
    )


def check_prompts(settings: Run) -> None:
  """Raises PromptError for prompts that cannot be used, which are read late in a run.

  They are missing, or have no place for what they are about.
  """
  values = flatten(settings)
  for name, value in values.items():
    section, _, field = name.rpartition('.')
    if not field.endswith('prompt'):
      continue
    try:
      text = prompts.load(value)
      prompts.check_places(text, prompts.PLACES.get(field, ()), value)
      context, compare = (values.get(f'{section}.{x}') for x in ('context', 'compare'))
      if field in JUDGE_PROMPTS and (context == 'narrative' or compare):
        prompts.check_places(text, ('narrative',), value)
      if field == 'prompt' and values.get(f'{section}.placeholder') == 'captions':
        prompts.check_any_place(text, ('factual_prompt', 'narrative'), value)
      if field == 'prompt' and values.get('reward.head_start') == 'judge':
        prompts.check_end(text, value)
    except prompts.PromptError as error:
      raise prompts.PromptError(f'config.{name}: {error}') from None
