"""Networks on disk: one of our bases, or LLaVA (both layouts), LLaMA and CLIP.

folder with config.json      LLaVA (both layouts), LLaMA, CLIP
folder with model.json       one of our bases
file                         mm_projector.bin, non_lora_trainables.bin
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import tokenizer_files, tokens
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import (
  folders,
  llama_config,
  model_config,
  names,
  nf4_files,
  preprocessor,
  tensor_files,
  weight_table,
)
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.json_section import Section, read_json
from vlm_rlaif_jax.weights.nf4_files import Nf4Tensor
from vlm_rlaif_jax.weights.tensors import ArrayTensor, StoredTensor, Tensor, Tensors

TOKENIZER = (
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
)
COMPANIONS = (*TOKENIZER, 'generation_config.json')  # copied with the weights


def has_tokenizer(folder: pathlib.Path) -> bool:
  return any((folder / name).is_file() for name in TOKENIZER[:2])


def copy_companions(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies what belongs to the weights of a folder; all ids that end an answer, too.

  These may be in `config.json` alone, which is not copied.
  """
  folders.copy_files(source, target, COMPANIONS)
  file, ids = tokenizer_files.named_ends(source)
  if len(ids) > 1 and file not in COMPANIONS and has_tokenizer(source):
    ends = tokens.load_tokenizer(source).ends
    (target / COMPANIONS[-1]).write_text(json.dumps({'eos_token_id': ends}) + '\n')


def is_base(folder: pathlib.Path) -> bool:
  """Whether a folder is one of our bases."""
  return (folder / 'model.json').is_file()


def read_network(
  folder: pathlib.Path,
  vision: pathlib.Path | None = None,
  projector: pathlib.Path | None = None,
) -> Checkpoint:
  """Returns the network of a folder, its tensors unread.

  Args:
    vision: a CLIP folder; gives what the checkpoint itself lacks of the towers.
    projector: a file; replaces the checkpoint's projector.
  """
  if not folder.is_dir():
    raise ConvertError(f'{folder}: no such folder')
  if is_base(folder):
    if vision is not None:
      raise ConvertError(
        f'vision: {vision} completes a foreign network; {folder} is a base of ours'
      )
    network = _read_base(folder)
  else:
    network = _read_foreign(folder, vision)
  if projector is not None:
    network = network.with_projector(read_projector(projector), projector)
    if projector.resolve().parent != folder.resolve():
      model_config.check_projector_config(projector.parent, network.cfg)
  return network


# ---------------------------------------------------------------- our bases


def _read_base(folder: pathlib.Path) -> Checkpoint:
  cfg = model_config.read_model_json(folder / 'model.json')
  paths = sorted(folder.glob('*.safetensors'))
  stored: dict[str, StoredTensor] = {}
  for file in paths:
    tensors_of_file = tensor_files.read_file(file)
    if repeated := sorted(stored.keys() & tensors_of_file.keys()):
      raise ConvertError(
        f'{file}: repeats {join_names(repeated, 2)} of another file of the folder; '
        'remove the file that is not of this base'
      )
    stored |= tensors_of_file
  if 'text/logit_scale' in stored:  # as the base of the package has it
    stored['text/logit_scale/w'] = stored.pop('text/logit_scale')
  through = nf4_files.quantized_dtype(paths)
  tensors: dict[str, Tensor] = {}
  problems = []
  for weight in weight_table.weights(cfg):
    shapes = {weight.name: weight.full_shape}
    double = f'{weight.name}/scale' in stored
    if through and weight.is_linear:
      parts = nf4_files.part_shapes(weight.name, weight.full_shape, double)
      shapes = {name: shape for name, (shape, _) in parts.items()}
    own = {name: stored.pop(name) for name in shapes if name in stored}
    for name, tensor in own.items():
      if tensor.shape != shapes[name]:
        problems.append(f'{name} has shape {tensor.shape}, expected {shapes[name]}')
    if len(own) < len(shapes):
      problems += [f'missing {name}' for name in shapes if own and name not in own]
    elif not problems:
      tensors |= _split_layers(weight, own, through, double)
  problems += [f'unexpected {name} {tensor.shape}' for name, tensor in stored.items()]
  if problems:
    raise ConvertError(f'{folder}: {join_names(problems)}')
  if not tensors:
    raise ConvertError(f'{folder}: has model.json but no *.safetensors')
  aspect, own_tower = model_config.read_origin(folder / 'model.json')
  return Checkpoint(folder, cfg, tensors, aspect=aspect, own_tower=own_tower)


def _split_layers(
  weight: weight_table.Weight,
  stored: Mapping[str, StoredTensor],
  through: str,
  double: bool,
) -> dict[str, Tensor]:
  """Returns the neutral tensors of one of our weights."""
  tensors: dict[str, Tensor] = {}
  for index, source in enumerate(weight.sources):
    layer = {
      name: tensor.layer(index) if weight.is_stacked else tensor
      for name, tensor in stored.items()
    }
    shape = weight.foreign_shape
    if weight.name in layer:
      tensors[source] = dataclasses.replace(layer[weight.name], shape=shape)
    else:
      parts = {name.rpartition('/')[2]: tensor for name, tensor in layer.items()}
      dtype = nf4_files.numpy_dtype(through)
      tensors[source] = Nf4Tensor(shape, dtype, double, parts)
  return tensors


# ---------------------------------------------------------------- foreign networks


def _read_foreign(folder: pathlib.Path, vision: pathlib.Path | None) -> Checkpoint:
  config = _read_config(folder)
  stored = tensor_files.read_shards(folder, 'model')
  if stored is None:
    raise ConvertError(
      f'{folder}: no model.safetensors, pytorch_model.bin or index of shards'
    )
  if not stored:
    raise ConvertError(f'{folder}: its files contain no tensors')
  tensors = nf4_files.join_bitsandbytes(names.to_neutral(stored))
  if any('multi_modal_projector' in name for name in stored):
    tensors = _without_added_rows(tensors, config)
  table = tensors.get('model.embed_tokens.weight')
  if table is not None and _is_tied(config):
    head = tensors.setdefault('lm_head.weight', table)
    if head is not table and not np.array_equal(head.read(), table.read()):
      raise config.error(
        'tie_word_embeddings',
        'False: lm_head.weight and the table of its files differ, and versions of '
        'transformers read either of them',
      )
  clip = Section({}, config.path)
  has_tower = any(name.startswith('vision.') for name in tensors)
  if vision is None and not has_tower:
    vision = tower_folder(config, folder)
  if vision is not None:
    _check_frozen(config, vision, has_tower)
    clip, towers = _read_clip(vision)
    tensors = towers | tensors
  dtype = next((t.dtype.name for t in tensors.values()), 'float32')
  if dtype not in ('float32', 'bfloat16', 'float16'):
    dtype = 'float32'
  cfg = model_config.read_config_json(tensors, config, clip, dtype)
  _check_recomputed(folder, stored, cfg)
  size = cfg.vision.image_size if has_tower or vision is not None else 0
  if vision is not None and not has_tower:
    preprocessor.read(vision, size)
  aspect = model_config.read_aspect(folder, config, size)
  return Checkpoint(folder, cfg, tensors, vision, aspect, bool(_trained_by(config)))


def _check_recomputed(folder: pathlib.Path, stored: Tensors, cfg: VlmConfig) -> None:
  """Raises ConvertError if rotary frequencies in a file are not those of its config.

  Earlier versions of transformers kept them with the weights, and computed with them.
  """
  size = cfg.llama.head_dim
  expected = cfg.llama.rope_theta ** -(np.arange(0, size, 2) / size)
  for name, tensor in stored.items():
    if not names.neutral_name(name).startswith('model.layers.'):
      continue
    if not name.endswith('rotary_emb.inv_freq'):
      continue
    values = tensor.read().astype(np.float64)
    # rounded, where the network was cast to 16 bits
    if values.shape != expected.shape or not np.allclose(values, expected, 3e-2, 1e-7):
      raise ConvertError(
        f'{folder}: {name} starts with {values.reshape(-1)[:3].round(4).tolist()}, '
        f'expected {expected[:3].round(4).tolist()} of rope_theta '
        f'{cfg.llama.rope_theta:g}: other rotary positions than config.json states'
      )


def _is_tied(config: Section) -> bool:
  """Whether the head of a decoder is its table."""
  sections = (llama_config.text_section(config), config)
  return any(x.choice('tie_word_embeddings', (False, True, None)) for x in sections)


def tower_folder(config: Section, folder: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder that `mm_vision_tower` names, if it is one; else None.

  Args:
    folder: of the config; a relative path may start there, or at the current folder.
  """
  name = config.values.get('mm_vision_tower') or config.values.get('vision_tower')
  if not isinstance(name, str):
    return None
  places = (pathlib.Path(name), folder / name)
  return next((place for place in places if (place / 'config.json').is_file()), None)


def _check_frozen(config: Section, vision: pathlib.Path, has_tower: bool) -> None:
  """Raises ConvertError if a tower that was trained is absent from its checkpoint."""
  if not has_tower and (field := _trained_by(config)):
    raise config.error(
      field, f'a tower among its tensors; {vision} is not the one that was trained'
    )


def _trained_by(config: Section) -> str:
  """Returns the field that says that the tower was trained; '' if none does."""
  if 'mm_vision_tower' in str(config.values.get('mm_tunable_parts') or ''):
    return 'mm_tunable_parts'
  name = 'unfreeze_mm_vision_tower'
  return name if config.values.get(name) else ''


def _read_clip(folder: pathlib.Path) -> tuple[Section, dict[str, Tensor]]:
  """Returns the config and the tensors of a CLIP checkpoint."""
  config = _read_config(folder)
  stored = tensor_files.read_shards(folder, 'model')
  if stored is None:
    raise ConvertError(f'{folder}: no model.safetensors or pytorch_model.bin')
  towers = names.to_neutral(stored)
  if not any(name.startswith('vision.') for name in towers):
    raise ConvertError(f'{folder}: not a CLIP checkpoint with a vision tower')
  return config, towers


def _read_config(folder: pathlib.Path) -> Section:
  path = folder / 'config.json'
  return Section(read_json(path), f'{path}: ')


def _without_added_rows(
  tensors: Mapping[str, Tensor], config: Section
) -> dict[str, Tensor]:
  """Returns the vocabulary without <image>, <pad> and the padding after them.

  The embeddings of our networks are looked up by text ids alone. An image token that
  cannot be the first of the added rows would cut off rows of the text, and is refused.
  """
  out = dict(tensors)
  field = config.first_present('image_token_index', 'image_token_id')
  if field not in config.values:
    return out
  image_token = config.integer(field)
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    table = out.get(name)
    if (
      not isinstance(table, StoredTensor)
      or not table.shape
      or image_token >= table.shape[0]
    ):
      continue
    if table.shape[0] - image_token not in (1, 2, model_config.padding(image_token)):
      raise config.error(
        field, f'the first id after the text, of {table.shape[0]} in {name}'
      )
    shape = (image_token, *table.shape[1:])
    out[name] = dataclasses.replace(table, shape=shape, crc=None)
  return out


# ---------------------------------------------------------------- projectors


def read_projector(path: pathlib.Path) -> Tensors:
  """Returns `projector.*` of mm_projector.bin or non_lora_trainables.bin.

  An empty file gives no tensors.
  """
  if not path.is_file():
    raise ConvertError(f'{path}: no such file')
  tensors = {}
  for name, tensor in tensor_files.read_file(path).items():
    new = names.neutral_name(
      name.removeprefix('base_model.').replace('model.model.', 'model.')
    )
    if not new.startswith('projector.'):
      raise ConvertError(f'{path}: unexpected {name} {tensor.shape}')
    if new in tensors:
      raise ConvertError(f'{path}: two tensors mean {new}; one of them is {name}')
    tensors[new] = tensor
  return tensors


def artifact_projector(tree: dict[str, Any]) -> dict[str, Tensor]:
  """Returns the projector of one of our artifacts, by neutral name.

  Args:
    tree: `{'in': {'w', 'bias'}, 'out': ...}`.
  """
  return {
    f'projector.{number}.{name}': ArrayTensor(np.asarray(tree[layer][leaf]))
    for layer, number in (('in', 0), ('out', 2))
    for leaf, name in (('w', 'weight'), ('bias', 'bias'))
  }
