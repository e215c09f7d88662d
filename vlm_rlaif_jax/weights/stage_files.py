"""Stages with their artifacts as checkpoints: their base is found and checked.

An artifact is an adapter (and head) on one of our bases, perhaps with an earlier SFT
stage merged into it. It records the fingerprint of both together, and where they were.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import adapters, artifacts, bases, network_files, peft_files
from vlm_rlaif_jax.weights.artifact_paths import artifact_json, is_artifact
from vlm_rlaif_jax.weights.artifacts import Artifact
from vlm_rlaif_jax.weights.checkpoint import BaseRef, Checkpoint, LoadedCheckpoint
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.json_section import Section, read_json


def is_stage(folder: pathlib.Path) -> bool:
  """Whether a folder is that of a stage with an artifact, or the artifact itself."""
  return (
    artifact_json(folder).is_file()
    or is_artifact(folder)
    or (folder / 'artifact.json').is_file()
  )


def read_stage(folder: pathlib.Path, base: str, sft: str) -> LoadedCheckpoint:
  """Returns the adapter of a stage on the network that it was trained on.

  Args:
    folder: of the stage, or its artifact.
    base: folder of the base; '': where the artifact or the run records it.
    sft: folder of the SFT stage that tuned the base; '': as recorded, else the stage
      `sft` in the same workdir.

  Raises:
    UserError: the artifact is damaged, or none of the bases is the recorded one.
  """
  if is_artifact(folder):
    folder = folder.absolute().parent
  path = artifact_json(folder)
  if not path.is_file():
    raise ConvertError(
      f'{folder}: has artifact.json, which must be in a folder named artifact; move it'
    )
  stage = str(read_json(path).get('stage'))
  if sft and stage == 'sft':
    raise ConvertError(f'sft: {folder} is itself an SFT stage; leave it out')
  artifact = _load(folder, stage)
  run = _run_settings(folder)
  network, base_ref = _find_base(folder, artifact, run, base, sft)
  if 'projector' in artifact.parts:
    network = _with_projector(network, artifact, folder)
  # Artifacts of earlier versions do not have it, and checkpoints may be gone.
  aspect = artifact.info.get('aspect') or run.get('data.aspect') or network.aspect
  network = dataclasses.replace(network, aspect=aspect)
  adapter = peft_files.Adapter(
    trees.flatten(artifact.parts['lora']), adapters.lora_of(artifact), base_ref.base
  )
  peft_files.check_fits(adapter, network.cfg, path, network.folder)
  return LoadedCheckpoint(
    kind='stage',
    network=network,
    adapter=adapter,
    head=artifact.parts.get('head'),
    scoring=RewardPrompt(**artifact.info.get('scoring', {})),
    frames=int(artifact.info.get('frames') or run.get('data.frames', 0)),
    artifact=artifact,
    base_ref=base_ref,
  )


def _with_projector(
  network: Checkpoint, artifact: Artifact, folder: pathlib.Path
) -> Checkpoint:
  projector = network_files.artifact_projector(artifact.parts['projector'])
  return network.with_projector(projector, folder)


# ---------------------------------------------------------------- artifact.json


def _load(folder: pathlib.Path, stage: str) -> Artifact:
  """Returns an artifact with the parts and the settings that its stage leaves.

  Raises:
    UserError: names the part or the field of `artifact.json` that is not as it must be.
  """
  artifact = artifacts.load(folder, stage)
  info, path = artifact.info, artifact_json(folder)
  kinds = {
    name: spec.parts for name, spec in stages.every().items() if spec.parts is not None
  }
  if stage not in kinds:
    raise ConvertError(
      f'{path}: stage is {stage!r}, expected one of {", ".join(kinds)}'
    )
  parts = kinds[stage]
  has_value = stage == 'ppo' and ('critic_lora' in info or 'value' in artifact.parts)
  if stage == 'ppo' and not has_value:  # of an algorithm without a value function
    parts = ()
  missing = [part for part in ('lora', *parts) if part not in artifact.parts]
  if missing:
    raise ConvertError(
      f'{path}: parts is missing {", ".join(missing)} of stage {stage}'
    )
  places = ('base', 'base_folder', 'sft_folder')
  for name in (*places, *(f'critic_{place}' for place in places)):
    if not isinstance(info.get(name) or '', str):
      raise ConvertError(f'{path}: {name} is {info[name]!r}, expected a text')
  adapter_parts = {'lora': 'lora'} | ({'critic_lora': 'value'} if has_value else {})
  for name, part in adapter_parts.items():
    lora = _settings(LoraConfig, info, name, path, ('rank', 'alpha', 'targets'))
    expected = {f'llama/layers/{x}/{side}' for x in lora.targets for side in 'ab'}
    if expected != trees.flatten(artifact.parts[part]).keys():
      raise ConvertError(f'{path}: {name}.targets are not those of {part}.safetensors')
  if 'scoring' in info:
    _settings(RewardPrompt, info, 'scoring', path)
  return artifact


def _settings(
  cls: Any,
  info: dict[str, Any],
  name: str,
  path: pathlib.Path,
  required: tuple[str, ...] = (),
) -> Any:
  """Returns a section of `artifact.json` as settings of a class."""
  section = Section(info, f'{path}: ').section(name)
  for field in required:
    if field not in section.values:
      raise section.error(field, 'the value that its stage was trained with')
  try:
    return from_config_dict(cls, section.values, f'{path}: {name}')
  except TypeError as error:
    raise ConvertError(f'{path}: {name}: {error}') from None


def _run_settings(folder: pathlib.Path) -> dict[str, Any]:
  """Returns settings of the run by dotted name, if its checkpoints still exist."""
  path = folder / 'checkpoints' / 'identity.json'
  return read_json(path) if path.is_file() else {}


# ---------------------------------------------------------------- its base


def _find_base(
  folder: pathlib.Path, artifact: Artifact, run: dict[str, Any], base: str, sft: str
) -> tuple[Checkpoint, BaseRef]:
  """Returns the network that an artifact was trained on, by its fingerprint.

  A base that is named is the only candidate; else those recorded by the artifact and by
  the run, and the base of the package.
  """
  info, path = artifact.info, artifact_json(folder)
  stage, trained_on = info['stage'], str(info.get('base'))
  recorded = [str(info.get('base_folder') or ''), str(run.get('base') or ''), '']
  tried = []
  for candidate in dict.fromkeys([base] if base else recorded):
    place = bases.base_folder(candidate)
    if not network_files.is_base(place):
      continue
    fingerprint, sft_artifact, sft_folder = bases.fingerprint(place), None, ''
    if stage != 'sft':
      places = (info.get('sft_folder'), run.get('inputs.sft'), run.get('sft'))
      sft_folder, sft_artifact = _find_sft(folder, sft, places)
    if sft_artifact is not None and sft_artifact.info.get('base') == fingerprint:
      fingerprint = bases.tuned_fingerprint(fingerprint, sft_artifact.fingerprint)
    else:
      sft_artifact, sft_folder = None, ''
    tried.append(f'{place} is {fingerprint}')
    if fingerprint == trained_on:
      break
  else:
    raise ConvertError(
      f'{path}: trained on weights {trained_on}, and '
      f'{"; ".join(tried) or "none of our bases was found"}; give base (and sft)'
    )
  network = network_files.read_network(place)
  if sft_artifact is not None:
    flat = trees.flatten(sft_artifact.parts['lora'])
    network = network.with_adapter(flat, adapters.lora_of(sft_artifact))
    network = _with_projector(network, sft_artifact, folder)
    aspect = str(sft_artifact.info.get('aspect') or network.aspect)
    network = dataclasses.replace(network, aspect=aspect)
  return network, BaseRef(str(place.resolve()), sft_folder)


def _find_sft(
  folder: pathlib.Path, named: str, recorded: Iterable[str | None]
) -> tuple[str, Artifact | None]:
  """Returns folder and artifact of the SFT stage under a later one; '' and None: none.

  It is the one that is named; else the first recorded one that still exists; else stage
  `sft` in the same workdir.
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
