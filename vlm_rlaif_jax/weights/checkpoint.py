"""Stage artifacts beside foreign files: finding their base, merging, converting.

A checkpoint that people bring is one of four things, and `open_any` tells which:

    stage    runs/7b/ppo, with its artifact  an adapter (and head) on one of our bases
    base     model.json                      ours
    adapter  adapter_config.json             PEFT's, on a base of either kind
    network  config.json                     LLaVA, LLaMA, CLIP
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import pairs
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  artifacts,
  bases,
  model_config,
  peft_files,
  readers,
  tensor_files,
)
from vlm_rlaif_jax.weights.readers import Checkpoint
from vlm_rlaif_jax.weights.tensor_files import ConvertError


@dataclasses.dataclass(frozen=True)
class BaseRef:
  """What an adapter was trained on.

  Attributes:
    base: one of our bases; '' where nothing says which.
    sft: the SFT stage that was merged into it; '' if none was.
  """

  base: str
  sft: str = ''

  def __str__(self) -> str:
    tuned = f' with {self.sft} merged into it' if self.sft else ''
    return f'{self.base or "a base that its artifact does not name"}{tuned}'


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
  """A network, and what has been trained on top of it.

  Attributes:
    kind: 'stage', 'base', 'adapter' or 'network'.
    network: with an earlier SFT merged into it.
    adapter: None, or what answers (or scores) with the network.
    head: None, or the reward head, `{'w': float32[D], 'b': float32[]}`.
    scoring: the turn that the reward model reads after an answer.
    frames: a video, as trained; 0: not known.
    aspect: how frames become squares, as trained.
    artifact: of a stage.
    ground: of a stage: what network was read from.
  """

  kind: str
  network: Checkpoint
  adapter: peft_files.Adapter | None = None
  head: dict | None = None
  scoring: RewardPrompt = RewardPrompt()
  frames: int = 0
  aspect: str = 'pad'
  artifact: artifacts.Artifact | None = None
  ground: BaseRef | None = None

  @property
  def merged(self) -> Checkpoint:
    """The network with the adapter merged into it."""
    if self.adapter is None:
      return self.network
    return readers.with_adapter(self.network, self.adapter.flat, self.adapter.lora)

  @property
  def places(self) -> list[pathlib.Path]:
    """Folders and files that it was read from, or still will be."""
    tensor_files = {tensor.place[0] for tensor in self.network.tensors.values()}
    tuned = [pathlib.Path(self.ground.sft)] if self.ground and self.ground.sft else []
    return [
      self.network.folder,
      *tuned,
      *(pathlib.Path(file) for file in tensor_files if file),
    ]

  def describe(self) -> str:
    lines = self.network.describe()
    if self.adapter is not None:
      lines += f'; {self.adapter.describe()}'
    return lines + ('; reward head' if self.head is not None else '')


def kind_of(folder: pathlib.Path) -> str:
  if not folder.is_dir():
    raise ConvertError(f'{folder}: no such folder')
  if artifact_json(folder).is_file():
    return 'stage'
  if readers.is_ours(folder):
    return 'base'
  if peft_files.find(folder):
    return 'adapter'
  if (folder / 'config.json').is_file():
    return 'network'
  raise ConvertError(
    f'{folder}: not a checkpoint; none of artifact/artifact.json, model.json, '
    'adapter_config.json and config.json is there'
  )


def open_any(
  folder: pathlib.Path,
  *,
  base: str = '',
  sft: str = '',
  vision: str = '',
  projector: str = '',
  scoring: RewardPrompt | None = None,
) -> LoadedCheckpoint:
  """Finds out what a folder is, and what it stands on.

  Args:
    base: for an adapter or a stage: the network under it, of either kind.
    sft: for a stage: the folder of the SFT stage that its base was tuned by.
    vision: a CLIP folder, for a network without its tower.
    projector: a file, for a network without a projector or in place of its own.
    scoring: the turn that a reward model reads; None: as its artifact records, or the
      reference's.
  """
  kind = kind_of(folder)
  given = {'base': base, 'sft': sft, 'vision': vision, 'projector': projector}
  reject_unused(given, OPENED_WITH[kind], f'{folder} ({kind})')
  path = lambda text: pathlib.Path(text) if text else None
  if kind == 'stage':
    opened = _open_stage(folder, base, sft)
  elif kind == 'adapter':
    opened = _open_adapter(folder, base, path(vision), path(projector))
  else:
    network = readers.open_checkpoint(folder, path(vision), path(projector))
    opened = LoadedCheckpoint(kind, network)
  if scoring is None:
    return opened
  if opened.head is None:
    raise ConvertError(f'scoring: {folder} has no reward head')
  check_scoring(scoring)
  return dataclasses.replace(opened, scoring=scoring)


OPENED_WITH = {
  'stage': ('base', 'sft'),
  'base': ('projector',),
  'adapter': ('base', 'vision', 'projector'),
  'network': ('vision', 'projector'),
}


def reject_unused(
  given: dict, applies: Iterable[str], what: str, start: str = ''
) -> None:
  """Refuses what was asked for and would be ignored."""
  idle = [
    start + name for name, value in given.items() if value and name not in applies
  ]
  if idle:
    raise ConvertError(f'{", ".join(idle)}: without effect on {what}; leave it out')


def check_scoring(scoring: RewardPrompt) -> None:
  try:
    pairs.reward_prompt(scoring)
  except (OSError, ValueError) as error:
    raise ConvertError(f'scoring: {error}') from None


# ---------------------------------------------------------------- PEFT


def _open_adapter(folder, base: str, vision, projector) -> LoadedCheckpoint:
  found = peft_files.find(folder)
  place = found.get('') or found['policy']
  adapter = peft_files.read(place)
  base = base or adapter.base
  if not pathlib.Path(base).is_dir() or not base:
    raise ConvertError(
      f'{place}: an adapter needs the network under it; its config names {base!r}, '
      'which is not a folder here; give one with base'
    )
  beside = folder / 'non_lora_trainables.bin'
  tuned = readers.read_projector(beside) if beside.is_file() else {}
  network = readers.open_checkpoint(pathlib.Path(base), vision, projector)
  peft_files.check(adapter, network.cfg, place, base)
  if tuned:
    network = readers.with_projector(network, tuned, beside)
  head = None
  path = peft_files.find_head(folder, 'reward_head')
  if path is not None:
    head = peft_files.read_head(path)
    peft_files.check_head(head, network.cfg, path)
  return LoadedCheckpoint('adapter', network, adapter, head)


# ---------------------------------------------------------------- stages


def artifact_json(folder: pathlib.Path) -> pathlib.Path:
  inner = folder / 'artifact' / 'artifact.json'
  return inner if inner.is_file() else folder / 'artifact.json'


def lora_config(fields: dict) -> LoraConfig:
  return LoraConfig(**{**fields, 'targets': tuple(fields['targets'])})


_PARTS = {  # that a stage leaves beside its adapter
  'sft': ('projector',),
  'init': (),
  'reward': ('head',),
  'ppo': ('value', 'value_head'),
}


def _load(folder: pathlib.Path, stage: str) -> artifacts.Artifact:
  """An artifact with the parts and the settings that its stage leaves.

  Raises:
    UserError: names the part or the field of `artifact.json` that is not as it must be.
  """
  artifact = artifacts.load(folder, stage)
  info, path = artifact.info, artifact_json(folder)
  if stage not in _PARTS:
    raise ConvertError(
      f'{path}: stage is {stage!r}, expected one of {", ".join(_PARTS)}'
    )
  lost = [part for part in ('lora', *_PARTS[stage]) if part not in artifact.parts]
  if lost:
    raise ConvertError(f'{path}: parts is missing {", ".join(lost)} of stage {stage}')
  kinds = ('base', 'base_folder', 'sft_folder')
  for name in (*kinds, *(f'critic_{kind}' for kind in kinds)):
    if not isinstance(info.get(name) or '', str):
      raise ConvertError(f'{path}: {name} is {info[name]!r}, expected a text')
  adapted = {'lora': 'lora'} | ({'critic_lora': 'value'} if stage == 'ppo' else {})
  for name, part in adapted.items():
    lora = _section(LoraConfig, info, name, path, ('rank', 'alpha', 'targets'))
    wanted = {f'llama/layers/{x}/{side}' for x in lora.targets for side in 'ab'}
    if wanted != trees.flatten(artifact.parts[part]).keys():
      raise ConvertError(f'{path}: {name}.targets are not those of {part}.safetensors')
  if 'scoring' in info:
    _section(RewardPrompt, info, 'scoring', path)
  return artifact


def _section(kind, info: dict, name: str, path: pathlib.Path, needed=()):
  """A section of `artifact.json` as settings."""
  section = model_config.Section(info, f'{path}: ').section(name)
  for field in needed:
    if field not in section.values:
      raise section.wrong(field, 'what its stage leaves')
  try:
    return from_config_dict(kind, section.values, f'{path}: {name}')
  except TypeError as error:
    raise ConvertError(f'{path}: {name}: {error}') from None


def _open_stage(folder: pathlib.Path, base: str, sft: str) -> LoadedCheckpoint:
  path = artifact_json(folder)
  info = tensor_files.read_json(path)
  stage = str(info.get('stage'))
  if sft and stage == 'sft':
    raise ConvertError(f'sft: {folder} is itself an SFT stage; leave it out')
  if path.parent.name != 'artifact':
    raise ConvertError(f'{path.parent}: an artifact is found in a folder of that name')
  folder = path.parent.parent
  artifact = _load(folder, stage)
  run = _run_settings(folder)
  trained_on = str(artifact.info.get('base'))
  told = [str(info.get('base_folder') or ''), str(run.get('base') or '')]
  where: list[str] = [base] if base else [*told, '']
  seen = []
  for candidate in dict.fromkeys(where):
    place = bases.base_folder(candidate)
    if not readers.is_ours(place):
      continue
    fingerprint, tuning, tuned_by = bases.fingerprint(place), None, ''
    if stage != 'sft':
      recorded = (info.get('sft_folder'), run.get('sft'))
      tuned_by, tuning = _sft_stage(folder, sft, recorded)
    if tuning is not None and tuning.info.get('base') == fingerprint:
      fingerprint = bases.tuned_fingerprint(fingerprint, tuning.fingerprint)
    else:
      tuning, tuned_by = None, ''
    seen.append(f'{place} is {fingerprint}')
    if fingerprint == trained_on:
      break
  else:
    raise ConvertError(
      f'{path}: trained on weights {trained_on}, and '
      f'{"; ".join(seen) or "none of our bases was found"}; give base (and sft)'
    )
  network = readers.open_checkpoint(place)
  if tuning is not None:
    lora, flat = lora_config(tuning.info['lora']), trees.flatten(tuning.parts['lora'])
    network = readers.with_adapter(network, flat, lora)
    projector = readers.projector_of(tuning.parts['projector'])
    network = readers.with_projector(network, projector, folder)
  if 'projector' in artifact.parts:
    projector = readers.projector_of(artifact.parts['projector'])
    network = readers.with_projector(network, projector, folder)
  adapter = peft_files.Adapter(
    trees.flatten(artifact.parts['lora']),
    lora_config(artifact.info['lora']),
    str(place),
  )
  peft_files.check(adapter, network.cfg, path, place)
  return LoadedCheckpoint(
    'stage',
    network,
    adapter,
    artifact.parts.get('head'),
    RewardPrompt(**artifact.info.get('scoring', {})),
    int(run.get('data.frames', 0)),
    run.get('data.aspect', 'pad'),
    artifact,
    BaseRef(str(place.resolve()), tuned_by),
  )


def _run_settings(folder: pathlib.Path) -> dict:
  """What the run of a stage was asked to do, where its checkpoints still say so."""
  path = folder / 'checkpoints' / 'identity.json'
  return tensor_files.read_json(path) if path.is_file() else {}


def _sft_stage(
  folder: pathlib.Path, named: str, recorded: Iterable[str | None]
) -> tuple[str, artifacts.Artifact | None]:
  """The SFT stage that a later stage stands on, and what it left; '' and None: none.

  As named; else as recorded, where it still is; else beside the stage.
  """
  for place in () if named else (*recorded, str(folder.parent / 'sft')):
    if place and (
      place == bases.MERGED or artifact_json(pathlib.Path(place)).is_file()
    ):
      named = place
      break
  if named in ('', bases.MERGED):
    return '', None
  return str(pathlib.Path(named).resolve()), _load(pathlib.Path(named), 'sft')
