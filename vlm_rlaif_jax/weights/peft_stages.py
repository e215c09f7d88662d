"""PEFT files of other people <-> artifacts of our stages."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  adapter_tokenizers,
  adapters,
  artifacts,
  bases,
  head_files,
  model_config,
  names,
  network_files,
  peft_files,
  processor_files,
  torch_files,
  tower_files,
  weight_table,
)
from vlm_rlaif_jax.weights.checkpoint import BaseRef, LoadedCheckpoint
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.readers import check_scoring
from vlm_rlaif_jax.weights.tensors import Tensors, check_finite

# ---------------------------------------------------------------- in


def import_adapter(
  folder: pathlib.Path,
  base: pathlib.Path,
  sft: str,
  critic: str,
  critic_sft: str,
  scoring: RewardPrompt | None = None,
) -> artifacts.Artifact:
  """Returns an artifact of the stage that would have made some PEFT files.

      projector in the folder: sft     reward_head: reward     two adapters: ppo
      none of these: init

  Args:
    base: one of our bases.
    sft: folder of the stage that tuned it, '' if it came tuned.
    critic: base of the value adapter of a PPO checkpoint.
    critic_sft: folder of the stage that tuned critic, '' if it came tuned.
    scoring: the turn that a reward model reads; None: the reference's.
  """
  places = peft_files.find(folder)
  folder = peft_files.checkpoint_folders(folder)[-1]
  projector_path = folder / 'non_lora_trainables.bin'
  projector = (
    network_files.read_projector(projector_path) if projector_path.is_file() else {}
  )
  fingerprint, cfg = _read_base(base, sft)
  place = places.get('') or places['policy']
  adapter = peft_files.read(place)
  peft_files.check_fits(adapter, cfg, place, base)
  adapter_tokenizers.check(place, base, cfg.llama.vocab)
  aspect = model_config.check_adapter_config(folder, cfg)
  parts: dict[str, Any] = {'lora': trees.unflatten(adapter.flat)}
  info: dict[str, Any] = {
    'stage': 'init',
    'base': fingerprint,
    **bases.origin(str(base), sft or bases.MERGED),
    'lora': dataclasses.asdict(adapter.lora),
    'template': prompts.TEMPLATE,
    **({'aspect': aspect} if aspect else {}),
  }
  head = head_files.find(folder, 'reward_head')
  has_value = 'value' in places
  if projector and (has_value or head is not None):
    raise ConvertError(
      f'{projector_path}: a projector and a head, expected one of them: only stage sft '
      'keeps a projector; give it to the base (--projector), then remove it here'
    )
  _check_options(folder, has_value, head, critic, critic_sft, scoring)
  if has_value:
    more_parts, more_info = _import_critic(folder, places['value'], critic, critic_sft)
    parts |= more_parts
    info |= {'stage': 'ppo', **more_info}
  elif head is not None:
    parts['head'] = head_files.read(head)
    head_files.check_fits(parts['head'], cfg, head)
    scoring = scoring or RewardPrompt()
    check_scoring(scoring)
    info |= {'stage': 'reward', 'scoring': dataclasses.asdict(scoring)}
  elif projector:
    parts['projector'] = _import_projector(projector, cfg, projector_path)
    info['stage'] = 'sft'
  return artifacts.Artifact(parts, info)


def _check_options(
  folder: pathlib.Path,
  has_value: bool,
  head: pathlib.Path | None,
  critic: str,
  critic_sft: str,
  scoring: RewardPrompt | None,
) -> None:
  """Raises ConvertError for options that PEFT files of this kind do not need."""
  if critic_sft and not critic:
    raise ConvertError('--critic_sft: tunes the base that --critic names; give both')
  if critic and not has_value:
    raise ConvertError(f'--critic: {folder} has no value adapter to put on it')
  if scoring is not None and (head is None or has_value):
    raise ConvertError(
      f'--reward_prompt, --placeholder: {folder} has no reward head that reads a prompt'
    )


def _import_critic(
  folder: pathlib.Path, place: pathlib.Path, critic: str, critic_sft: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns parts and info of the value adapter of a PPO checkpoint and its head."""
  if not critic:
    raise ConvertError(f'{folder}: the value adapter needs its base; give --critic')
  head_path = head_files.find(folder, 'value_head.pt')
  if head_path is None:
    raise ConvertError(f'{folder}: no value_head.pt for the value adapter')
  fingerprint, cfg = _read_base(pathlib.Path(critic), critic_sft)
  adapter = peft_files.read(place)
  peft_files.check_fits(adapter, cfg, place, pathlib.Path(critic))
  adapter_tokenizers.check(place, pathlib.Path(critic), cfg.llama.vocab)
  head = head_files.read(head_path)
  head_files.check_fits(head, cfg, head_path)
  return {'value': trees.unflatten(adapter.flat), 'value_head': head}, {
    'critic_base': fingerprint,
    **bases.origin(critic, critic_sft or bases.MERGED, 'critic_'),
    'critic_lora': dataclasses.asdict(adapter.lora),
  }


def _import_projector(
  projector: Tensors, cfg: VlmConfig, path: pathlib.Path
) -> dict[str, Any]:
  """Returns the projector as a tree of ours, checked against the network."""
  flat = {name: tensor.read() for name, tensor in projector.items()}
  weights = {
    weight.sources[0]: weight
    for weight in weight_table.weights(cfg)
    if weight.part == 'projector'
  }
  problems = trees.mismatches(
    flat, {n: np.empty(weight.shape, np.bool_) for n, weight in weights.items()}
  )
  if problems:
    raise ConvertError(f'{path}: {join_names(problems)}')
  return trees.unflatten(
    {
      weights[n].name.removeprefix('projector/'): check_finite(path, n, array)
      for n, array in flat.items()
    }
  )


def _read_base(folder: pathlib.Path, sft: str) -> tuple[str, VlmConfig]:
  """Returns fingerprint and sizes of one of our bases, tuned by an SFT stage or not."""
  if not network_files.is_base(folder):
    raise ConvertError(
      f'{folder}: not one of our bases (no model.json); convert it first'
    )
  cfg = model_config.read_model_json(folder / 'model.json')
  fingerprint = bases.fingerprint(folder)
  if sft and sft != bases.MERGED:
    artifact = artifacts.load(pathlib.Path(sft), 'sft', fingerprint)
    fingerprint = bases.tuned_fingerprint(fingerprint, artifact.fingerprint)
  return fingerprint, cfg


# ---------------------------------------------------------------- out


def resolve_base_names(
  stage: LoadedCheckpoint,
  layout: str,
  base_name: str,
  critic_base_name: str,
  log: Callable[[str], None],
) -> tuple[str, str]:
  """Returns the names that PEFT files give the networks of policy and value adapter.

  A PEFT file names one folder. Where an SFT stage was merged into a base there is none
  until somebody writes it, so its name has to be given.

  Args:
    layout: that the adapters are for, 'llava' or 'hf'.
    base_name: of the policy's network; '': that of our base.
    critic_base_name: of the critic's; '': the policy's, if both are one network.
    log: receives a line on each.
  """
  assert stage.artifact is not None and stage.base_ref is not None
  base_ref, info = stage.base_ref, stage.artifact.info
  if not base_name and base_ref.sft:
    hint = _export_hint(base_ref, layout, 'base_name')
    raise ConvertError(f'--base_name: the adapter was trained on {hint}')
  if not base_name:
    base_name = base_ref.base
    hint = _export_hint(base_ref, layout, 'base_name')
    log(
      f'the adapter was trained on {hint}; until '
      'then only vlm_rlaif_jax can open the network that the files name'
    )
  else:
    log(f'the adapter was trained on {base_ref}; its file names {base_name}')
  if 'critic_lora' not in info:
    if critic_base_name:
      raise ConvertError('--critic_base_name: only a PPO stage has a value adapter')
    return base_name, ''
  critic_ref = _critic_base(info)
  if not critic_base_name and info.get('critic_base') == info.get('base'):
    critic_base_name = base_name
  if not critic_base_name:
    hint = _export_hint(critic_ref, layout, 'critic_base_name')
    raise ConvertError(f'--critic_base_name: the value adapter was trained on {hint}')
  log(
    f'the value adapter was trained on {critic_ref}; its file names {critic_base_name}'
  )
  return base_name, critic_base_name


def _export_hint(base_ref: BaseRef, layout: str, flag: str) -> str:
  """Returns a network in words, and the command that writes it for others."""
  source = base_ref.sft or base_ref.base or 'ITS_BASE'
  return (
    f'{base_ref}; write that network with python -m launch.convert {source} OUT '
    f'--to={layout}, and name it with --{flag}=OUT'
  )


def _critic_base(info: Mapping[str, Any]) -> BaseRef:
  """Returns what the value adapter of a PPO artifact was trained on, as recorded."""
  sft = str(info.get('critic_sft_folder') or '')
  return BaseRef(
    str(info.get('critic_base_folder') or ''), '' if sft == bases.MERGED else sft
  )


def export_adapter(
  stage: LoadedCheckpoint,
  folder: pathlib.Path,
  base_name: str,
  critic_base_name: str = '',
  dtype: str = '',
  layout: str = 'llava',
) -> None:
  """Writes an artifact as PEFT files, laid out as the reference does.

      sft      ./ and non_lora_trainables.bin        init     ./
      reward   adapter_model/lora_default/ and reward_head
      ppo      adapter_model/lora_policy/, lora_value/ and value_head.pt; the last two
               where it has a value function

  Args:
    base_name: the network that the adapter's config names.
    critic_base_name: the same for the value adapter of PPO.
    dtype: of the adapters; '': as they are.
    layout: of the network that they are for, 'llava' or 'hf'.
  """
  assert stage.artifact is not None and stage.adapter is not None
  name, parts = stage.artifact.info['stage'], stage.artifact.parts
  places = {'reward': 'adapter_model/lora_default', 'ppo': 'adapter_model/lora_policy'}
  flat, lora = stage.adapter.flat, stage.adapter.lora
  peft_files.write(folder / places.get(name, ''), flat, lora, base_name, dtype, layout)
  if 'value' in parts:
    flat = trees.flatten(parts['value'])
    lora = adapters.lora_of(stage.artifact, 'critic_lora')
    place = folder / 'adapter_model/lora_value'
    peft_files.write(place, flat, lora, critic_base_name, dtype, layout)
    head_files.write(folder / 'value_head.pt', parts['value_head'])
  if name == 'reward':
    head_files.write(folder / 'reward_head', parts['head'])
  if name == 'sft':
    projector = network_files.artifact_projector(parts['projector'])
    arrays = {
      _projector_name(source, layout): tensor.read()
      for source, tensor in projector.items()
    }
    torch_files.write(folder / 'non_lora_trainables.bin', arrays)
  network, cfg = stage.network, stage.network.cfg
  config = model_config.to_config_json(
    cfg,
    layout,
    network.dtype,
    processor_files.image_token(network.folder, cfg.llama.vocab),
    tower=tower_files.name_or_place(network, pathlib.Path(base_name)),
    aspect=network.aspect or 'pad',
    ids=dataclasses.asdict(processor_files.text_ids(network.folder)),
  )
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  network_files.copy_companions(stage.network.folder, folder)


def _projector_name(name: str, layout: str) -> str:
  """Returns the name of a projector's tensor in the model that PEFT wraps."""
  start = {'llava': 'base_model.model.', 'hf': 'base_model.model.model.'}[layout]
  return start + names.LAYOUTS[layout](name)
