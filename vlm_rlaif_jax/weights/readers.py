"""Checkpoints in, of any kind: what a folder is, and what it contains.

kind     file                    contents
stage    artifact/artifact.json  an adapter (and head) on one of our bases
base     model.json              a network of ours
adapter  adapter_config.json     PEFT's, on a base of either kind
network  config.json             LLaVA, LLaMA, CLIP
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_rlaif_jax.data import pairs
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  adapter_tokenizers,
  head_files,
  model_config,
  network_files,
  peft_files,
  stage_files,
)
from vlm_rlaif_jax.weights.checkpoint import LoadedCheckpoint
from vlm_rlaif_jax.weights.errors import ConvertError

OPTIONS = {  # of `load_checkpoint`, that apply to a kind
  'stage': ('base', 'sft'),
  'base': ('projector',),
  'adapter': ('base', 'vision', 'projector'),
  'network': ('vision', 'projector'),
}


def kind_of(folder: pathlib.Path) -> str:
  """Returns 'stage', 'base', 'adapter' or 'network'."""
  if not folder.is_dir():
    raise ConvertError(f'{folder}: no such folder')
  if stage_files.is_stage(folder):
    return 'stage'
  if network_files.is_base(folder):
    return 'base'
  if peft_files.find(folder):
    return 'adapter'
  if (folder / 'config.json').is_file():
    return 'network'
  raise ConvertError(
    f'{folder}: not a checkpoint; expected one of artifact/artifact.json, model.json, '
    'adapter_config.json and config.json in it'
  )


def load_checkpoint(
  folder: pathlib.Path,
  *,
  base: str = '',
  sft: str = '',
  vision: str = '',
  projector: str = '',
  scoring: RewardPrompt | None = None,
) -> LoadedCheckpoint:
  """Returns what a folder contains, with the network under an adapter or a stage.

  Args:
    base: for an adapter or a stage: the network under it, of either kind.
    sft: for a stage: the folder of the SFT stage that its base was tuned by.
    vision: a CLIP folder, for a network without its tower.
    projector: a file, for a network without a projector or in place of its own.
    scoring: the turn that a reward model reads; None: as its artifact records, or the
      reference's.

  Raises:
    UserError: something is missing, damaged, or given without an effect.
  """
  kind = kind_of(folder)
  options = {'base': base, 'sft': sft, 'vision': vision, 'projector': projector}
  reject_unused(options, OPTIONS[kind], f'{folder} ({kind})')
  vision_path = pathlib.Path(vision) if vision else None
  projector_path = pathlib.Path(projector) if projector else None
  if kind == 'stage':
    checkpoint = stage_files.read_stage(folder, base, sft)
  elif kind == 'adapter':
    checkpoint = _read_adapter(folder, base, vision_path, projector_path)
  else:
    network = network_files.read_network(folder, vision_path, projector_path)
    checkpoint = LoadedCheckpoint(kind, network)
  if scoring is None:
    return checkpoint
  if checkpoint.head is None:
    raise ConvertError(f'scoring: {folder} has no reward head')
  check_scoring(scoring)
  return dataclasses.replace(checkpoint, scoring=scoring)


def reject_unused(
  options: Mapping[str, Any], used: Iterable[str], target: str, prefix: str = ''
) -> None:
  """Raises ConvertError for options that were given and would be ignored.

  Args:
    options: values by name; one that is not given is falsy.
    used: names of those that have an effect.
    target: what they would apply to, in the error.
    prefix: of names in the error, as '--'.
  """
  unused = [
    prefix + name for name, value in options.items() if value and name not in used
  ]
  if unused:
    raise ConvertError(f'{", ".join(unused)}: without effect on {target}; leave it out')


def check_scoring(scoring: RewardPrompt) -> None:
  """Raises ConvertError if the prompt of a reward model cannot be read."""
  try:
    pairs.reward_prompt(scoring)
  except (OSError, ValueError) as error:
    raise ConvertError(f'scoring: {error}') from None


def _read_adapter(
  folder: pathlib.Path,
  base: str,
  vision: pathlib.Path | None,
  projector: pathlib.Path | None,
) -> LoadedCheckpoint:
  """Returns a PEFT adapter on its network, with its projector and its reward head."""
  places = peft_files.find(folder)
  place = places.get('') or places['policy']
  adapter = peft_files.read(place)
  base = base or adapter.base
  if not base or not pathlib.Path(base).is_dir():
    raise ConvertError(
      f'{place}: an adapter needs the network under it; its config names {base!r}, '
      'which is not a folder here; give one with base'
    )
  folder = peft_files.checkpoint_folders(folder)[-1]
  own_projector = folder / 'non_lora_trainables.bin'
  tensors = (
    network_files.read_projector(own_projector) if own_projector.is_file() else {}
  )
  network = network_files.read_network(pathlib.Path(base), vision, projector)
  peft_files.check_fits(adapter, network.cfg, place, pathlib.Path(base))
  adapter_tokenizers.check(place, pathlib.Path(base), network.cfg.llama.vocab)
  aspect = model_config.check_adapter_config(folder, network.cfg)
  network = dataclasses.replace(network, aspect=aspect or network.aspect)
  if tensors:
    network = network.with_projector(tensors, own_projector)
  head = None
  path = head_files.find(folder, 'reward_head')
  if path is not None:
    head = head_files.read(path)
    head_files.check_fits(head, network.cfg, path)
  return LoadedCheckpoint('adapter', network, adapter, head)
