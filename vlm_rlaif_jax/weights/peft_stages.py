"""PEFT files of other people <-> artifacts of our stages."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  artifacts,
  bases,
  file_writer,
  model_config,
  names,
  peft_files,
  readers,
  tensor_files,
)
from vlm_rlaif_jax.weights.checkpoint import (
  BaseRef,
  LoadedCheckpoint,
  check_scoring,
  lora_config,
)
from vlm_rlaif_jax.weights.request import Request
from vlm_rlaif_jax.weights.tensor_files import ConvertError


def import_adapter(
  folder: pathlib.Path,
  base: pathlib.Path,
  sft: str,
  critic: str,
  critic_sft: str,
  scoring: RewardPrompt | None = None,
) -> artifacts.Artifact:
  """PEFT files -> an artifact of the stage that would have made them.

      projector beside it: sft     reward_head: reward     two adapters: ppo
      none of these: init

  Args:
    base: one of our bases; sft: of the stage that tuned it, '' if it came tuned.
    critic, critic_sft: the same for the value adapter of a PPO checkpoint.
    scoring: the turn that a reward model reads; None: the reference's.
  """
  found = peft_files.find(folder)
  beside = folder / 'non_lora_trainables.bin'
  projector = readers.read_projector(beside) if beside.is_file() else {}
  fingerprint, cfg = _our_base(base, sft)
  place = found.get('') or found['policy']
  adapter = peft_files.read(place)
  peft_files.check(adapter, cfg, place, base)
  parts: dict = {'lora': trees.unflatten(adapter.flat)}
  info: dict = {
    'stage': 'init',
    'base': fingerprint,
    **bases.origin(str(base), sft or bases.MERGED),
    'lora': dataclasses.asdict(adapter.lora),
    'template': prompts.TEMPLATE,
  }
  head = peft_files.find_head(folder, 'reward_head')
  if projector and ('value' in found or head is not None):
    raise ConvertError(
      f'{beside}: a projector beside a head, expected one of them: only stage sft '
      'keeps a projector; give it to the base (--projector), then take it away here'
    )
  if critic_sft and not critic:
    raise ConvertError('--critic_sft: tunes the base that --critic names; give both')
  if critic and 'value' not in found:
    raise ConvertError(f'--critic: {folder} has no value adapter to put on it')
  if scoring is not None and (head is None or 'value' in found):
    raise ConvertError(
      f'--reward_prompt, --placeholder: {folder} has no reward head that reads a prompt'
    )
  if 'value' in found:
    if not critic:
      raise ConvertError(f'{folder}: the value adapter needs its base; give --critic')
    value_path = peft_files.find_head(folder, 'value_head.pt')
    if value_path is None:
      raise ConvertError(f'{folder}: no value_head.pt beside the value adapter')
    critic_base, critic_cfg = _our_base(pathlib.Path(critic), critic_sft)
    value = peft_files.read(found['value'])
    peft_files.check(value, critic_cfg, found['value'], critic)
    parts |= {
      'value': trees.unflatten(value.flat),
      'value_head': peft_files.read_head(value_path),
    }
    peft_files.check_head(parts['value_head'], critic_cfg, value_path)
    info |= {
      'stage': 'ppo',
      'critic_base': critic_base,
      **bases.origin(critic, critic_sft or bases.MERGED, 'critic_'),
      'critic_lora': dataclasses.asdict(value.lora),
    }
  elif head is not None:
    parts['head'] = peft_files.read_head(head)
    peft_files.check_head(parts['head'], cfg, head)
    scoring = scoring or RewardPrompt()
    check_scoring(scoring)
    info |= {'stage': 'reward', 'scoring': dataclasses.asdict(scoring)}
  elif projector:
    flat = {name: tensor.read() for name, tensor in projector.items()}
    parts['projector'] = _our_projector(flat, cfg, beside)
    info['stage'] = 'sft'
  return artifacts.Artifact(parts, info)


def _our_projector(flat: dict, cfg, where) -> dict:
  wanted = {
    leaf.sources[0]: leaf for leaf in names.leaves(cfg) if leaf.part == 'projector'
  }
  problems = trees.mismatches(
    flat, {n: np.empty(leaf.shape, np.bool_) for n, leaf in wanted.items()}
  )
  if problems:
    raise ConvertError(f'{where}: {tensor_files.listed(problems)}')
  named = {
    wanted[n].name.removeprefix('projector/'): tensor_files.floats(where, n, a)
    for n, a in flat.items()
  }
  return trees.unflatten(named)


def _our_base(folder: pathlib.Path, sft: str):
  """Fingerprint, sizes of one of our bases, tuned by an SFT artifact or as it is."""
  if not readers.is_ours(folder):
    raise ConvertError(
      f'{folder}: not one of our bases (no model.json); convert it first'
    )
  cfg = model_config.of_model_json(folder / 'model.json')
  fingerprint = bases.fingerprint(folder)
  if sft and sft != bases.MERGED:
    artifact = artifacts.load(pathlib.Path(sft), 'sft', fingerprint)
    fingerprint = bases.tuned_fingerprint(fingerprint, artifact.fingerprint)
  return fingerprint, cfg


def resolve_base_name(
  stage: LoadedCheckpoint, layout: str, request: Request, say: Callable[[str], None]
) -> tuple[str, str]:
  """Under which names others find the networks below policy and value adapter.

  A PEFT file names one folder. Where an SFT stage was merged into a base there is none
  until somebody writes it, so its name has to be given.
  """
  assert stage.artifact is not None and stage.ground is not None
  ground, info = stage.ground, stage.artifact.info
  name = request.base_name
  if not name and ground.sft:
    raise ConvertError(
      f'--base_name: the adapter stands on {_export_hint(ground, layout)}'
    )
  if not name:
    name = ground.base
    say(
      f'the adapter stands on {_export_hint(ground, layout)}; until then only vlm_rlaif_jax '
      'can open what the files name'
    )
  else:
    say(f'the adapter stands on {ground}; its file names {name}')
  if info['stage'] != 'ppo':
    if request.critic_base_name:
      raise ConvertError('--critic_base_name: only a PPO stage has a value adapter')
    return name, ''
  critic = _critic_base(info)
  value = request.critic_base_name
  if not value and info.get('critic_base') == info.get('base'):
    value = name
  if not value:
    what = _export_hint(critic, layout, 'critic_base_name')
    raise ConvertError(f'--critic_base_name: the value adapter stands on {what}')
  say(f'the value adapter stands on {critic}; its file names {value}')
  return name, value


def _export_hint(ground: BaseRef, layout: str, flag: str = 'base_name') -> str:
  """What an adapter stands on, and the command that makes it a network for others."""
  source = ground.sft or ground.base or 'ITS_BASE'
  return (
    f'{ground}; write that network with python -m launch.convert {source} OUT '
    f'--to={layout}, and name it with --{flag}=OUT'
  )


def _critic_base(info: dict) -> BaseRef:
  """What the value adapter of a PPO artifact was trained on, as recorded."""
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
  """An artifact -> PEFT files, laid out as the reference does.

  Args:
    base_name, critic_base_name: what they name as the networks under them.
    dtype: of the adapters; '': as they are.
    layout: of the network that they are for, 'llava' or 'hf'.

  sft      ./ and non_lora_trainables.bin        init     ./
  reward   adapter_model/lora_default/ and reward_head
  ppo      adapter_model/lora_policy/, lora_value/ and value_head.pt
  """
  assert stage.artifact is not None and stage.adapter is not None
  name, parts = stage.artifact.info['stage'], stage.artifact.parts
  place = {'reward': 'adapter_model/lora_default', 'ppo': 'adapter_model/lora_policy'}
  peft_files.write(
    folder / place.get(name, ''),
    stage.adapter.flat,
    stage.adapter.lora,
    base_name,
    dtype,
    layout,
  )
  if name == 'ppo':
    peft_files.write(
      folder / 'adapter_model/lora_value',
      trees.flatten(parts['value']),
      lora_config(stage.artifact.info['critic_lora']),
      critic_base_name,
      dtype,
      layout,
    )
    peft_files.write_head(folder / 'value_head.pt', parts['value_head'])
  if name == 'reward':
    peft_files.write_head(folder / 'reward_head', parts['head'])
  if name == 'sft':
    projector = readers.projector_of(parts['projector'])
    file_writer.write_torch(
      folder / 'non_lora_trainables.bin',
      {_PROJECTORS[layout](name): tensor.read() for name, tensor in projector.items()},
    )
  cfg = stage.network.cfg
  config = model_config.to_config_json(
    cfg, layout, stage.network.dtype, cfg.llama.vocab
  )
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  file_writer.copy_files(stage.network.folder, folder, readers.TRAVELS)


_PROJECTORS: dict[str, Callable[[str], str]] = {  # as in the model that peft wraps
  'llava': lambda name: f'base_model.model.{names.original(name)}',
  'hf': lambda name: f'base_model.model.model.{names.hugging_face(name)}',
}
