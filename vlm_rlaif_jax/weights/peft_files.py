"""PEFT's adapter files, in and out.

<folder>[/adapter_model][/lora_default]/adapter_config.json
                                        adapter_model.bin | .safetensors
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.settings.models import LINEARS, LoraConfig, VlmConfig
from vlm_rlaif_jax.weights import (
  config_fields,
  llama_config,
  names,
  peft_targets,
  tensor_files,
  weight_table,
)
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.json_section import Section, read_json
from vlm_rlaif_jax.weights.safetensors_files import Writer
from vlm_rlaif_jax.weights.tensors import Tensor, check_finite, is_floating

_SUPPORTED = {  # fields of adapter_config.json, and the values that ours can express
  # starts that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do not
  'init_lora_weights': (True, False, None, 'gaussian', 'eva', 'orthogonal'),
  'bias': ('none',),
  'fan_in_fan_out': (False, None),
  'use_dora': (False, None),
  'lora_bias': (False, None),
  'layer_replication': (None, []),
  'modules_to_save': (None, []),
  'rank_pattern': ({}, None),
  'alpha_pattern': ({}, None),
}
_INNER = ('lora_default', 'lora_policy', 'lora_value', 'adapter_model')
Key = tuple[str, int, str]  # linear, layer, 'a' or 'b'


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter in our shapes: `llama/layers/q/a` `[L, rank, in]`, `b` `[L, out, rank]`.

  Attributes:
    base: the path that its file names as its base; often another machine's.
  """

  flat: dict[str, np.ndarray]
  lora: LoraConfig
  base: str = ''

  @property
  def layers(self) -> int:
    return next(iter(self.flat.values())).shape[0]

  @property
  def width(self) -> int:
    """The width of the decoder that it is for."""
    for name, value in self.flat.items():
      linear, side = name.split('/')[2:]
      if side == 'a' and linear in ('q', 'k', 'v', 'gate', 'up'):
        return value.shape[2]
      if side == 'b' and linear in ('o', 'down'):
        return value.shape[1]
    raise ConvertError('an adapter without linears')

  def describe(self) -> str:
    size = llama_config.size_name(self.width, self.layers)
    return (
      f'adapter of rank {self.lora.rank} on {", ".join(self.lora.targets)} for a '
      f'decoder of {self.layers} layers and width {self.width} ({size})'
    )


def checkpoint_folders(place: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folder of an adapter and those above it of the same checkpoint.

  The last one has what belongs to the checkpoint: heads, projector, config.json.
  """
  places = [place]
  while places[-1].name in _INNER:
    places.append(places[-1].parent)
  return places


def find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folders of adapters below a folder, by role.

  Returns:
    `{'': ...}` for a single adapter, 'policy' and 'value' for those of PPO, {} where
    there is none.

  Raises:
    ConvertError: there is a value adapter without a policy.
  """
  for place in (folder / 'adapter_model', folder):
    roles = {
      role: place / f'lora_{role}'
      for role in ('policy', 'value')
      if (place / f'lora_{role}' / 'adapter_config.json').is_file()
    }
    if roles and 'policy' not in roles:
      raise ConvertError(f'{place}: has lora_value and no lora_policy')
    if roles:
      return roles
    for inner in (place / 'lora_default', place):
      if (inner / 'adapter_config.json').is_file():
        return {'': inner}
  return {}


# ---------------------------------------------------------------- reading


def read(folder: pathlib.Path) -> Adapter:
  """Returns the adapter of one folder.

  Raises:
    ConvertError: a field or a tensor is missing, unexpected, damaged or not supported.
  """
  path = folder / 'adapter_config.json'
  config = Section(read_json(path), f'{path}: ')
  lora = _lora_config(config)
  tensors = _read_tensors(folder)
  flat = _stack_layers(folder, tensors, lora.rank)
  targets = tuple(n for n in LINEARS if f'llama/layers/{n}/a' in flat)
  peft_targets.check(folder, config, {(n, layer) for n, layer, _ in tensors})
  lora = dataclasses.replace(lora, targets=targets)
  return Adapter(flat, lora, str(config.values.get('base_model_name_or_path') or ''))


def _lora_config(config: Section) -> LoraConfig:
  """Returns rank, alpha and dropout; the targets are read off the tensors."""
  values = config.values
  config.choice('peft_type', ('LORA',))
  for field, supported in _SUPPORTED.items():
    config.choice(field, supported)
  config_fields.reject_unknown(config, (*config_fields.ADAPTER, *_SUPPORTED))
  rank, alpha = config.integer('r'), config.positive('lora_alpha')
  dropout = values.get('lora_dropout') or 0.0
  if type(dropout) not in (int, float) or not 0 <= dropout < 1:
    raise config.error('lora_dropout', 'a number in [0, 1)')
  if config.choice('use_rslora', (False, None, True)):
    alpha *= rank**0.5  # scaled by alpha / sqrt(rank) there, by alpha / rank here
  return LoraConfig(rank=rank, alpha=alpha, dropout=float(dropout))


def _read_tensors(folder: pathlib.Path) -> dict[Key, Tensor]:
  for name in ('adapter_model.safetensors', 'adapter_model.bin'):
    if (folder / name).is_file():
      stored = tensor_files.read_file(folder / name)
      break
  else:
    raise ConvertError(f'{folder}: no adapter_model.safetensors or adapter_model.bin')
  tensors: dict[Key, Tensor] = {}
  problems = []
  for name, tensor in stored.items():
    key = names.parse_peft_name(name)
    if key is None:
      problems.append(f'unexpected {name} {tensor.shape}')
    elif key in tensors:
      problems.append(
        f'two tensors mean {names.peft_name(*key)}; one of them is {name}'
      )
    else:
      tensors[key] = tensor
  if problems or not tensors:
    raise ConvertError(
      f'{folder}: {join_names(problems) or "contains no adapter of the decoder"}'
    )
  return tensors


def _stack_layers(
  folder: pathlib.Path, tensors: Mapping[Key, Tensor], rank: int
) -> dict[str, np.ndarray]:
  """Returns the layers of each linear in one array.

  Raises:
    ConvertError: lists what is missing, misshapen or not floating.
  """
  layers = 1 + max(layer for _, layer, _ in tensors)
  linears = {linear for linear, _, _ in tensors}
  problems: list[str] = []
  flat: dict[str, np.ndarray] = {}
  for linear, side in ((linear, side) for linear in LINEARS for side in 'ab'):
    if linear not in linears:
      continue
    keys = [(linear, layer, side) for layer in range(layers)]
    missing = [names.peft_name(*key) for key in keys if key not in tensors]
    problems += [f'missing {name}' for name in missing]
    if missing:
      continue
    problems += _layer_problems(tensors, keys, rank)
    if not problems:
      flat[f'llama/layers/{linear}/{side}'] = np.stack(
        [
          check_finite(folder, names.peft_name(*key), tensors[key].read())
          for key in keys
        ]
      )
  if problems:
    raise ConvertError(f'{folder}: {join_names(problems)}')
  return flat


def _layer_problems(
  tensors: Mapping[Key, Tensor], keys: list[Key], rank: int
) -> list[str]:
  """Returns which layers of one side of a linear are not like the first."""
  problems = []
  shape, dtype = tensors[keys[0]].shape, tensors[keys[0]].dtype
  for key in keys:
    name, tensor = names.peft_name(*key), tensors[key]
    axis = 0 if key[2] == 'a' else -1
    if len(tensor.shape) != 2 or tensor.shape[axis] != rank or tensor.shape != shape:
      problems.append(f'{name} has shape {tensor.shape}, expected rank {rank}')
    if not is_floating(tensor.dtype):
      problems.append(f'{name} has dtype {tensor.dtype}, expected a floating one')
    elif tensor.dtype != dtype:
      problems.append(f'{name} has dtype {tensor.dtype}, layer 0 has {dtype}')
  return problems


def check_fits(
  adapter: Adapter, cfg: VlmConfig, path: pathlib.Path, base: pathlib.Path
) -> None:
  """Raises ConvertError if an adapter was made for a decoder of another size.

  Args:
    path: of the adapter, in the error.
    base: of the network, in the error.
  """
  llama = cfg.llama
  if (adapter.layers, adapter.width) != (llama.layers, llama.width):
    size = llama_config.size_name(adapter.width, adapter.layers)
    raise ConvertError(
      f'{path}: made for a decoder of {adapter.layers} layers and width '
      f'{adapter.width} ({size}); {base} has {llama.layers} layers and width '
      f'{llama.width} ({cfg.name})'
    )
  shapes = {w.name: w.shape for w in weight_table.weights(cfg) if w.is_linear}
  rank, problems = adapter.lora.rank, []
  for name, value in adapter.flat.items():
    out, fan_in = shapes[f'{name[:-2]}/w']
    expected = (rank, fan_in) if name[-1] == 'a' else (out, rank)
    if value.shape[1:] != expected:
      problems.append(
        f'{name} has shape {value.shape[1:]} a layer, expected {expected}'
      )
  if problems:
    raise ConvertError(f'{path}: does not fit {base}: {join_names(problems)}')


# ---------------------------------------------------------------- writing


def write(
  folder: pathlib.Path,
  flat: Mapping[str, Any],
  lora: LoraConfig,
  base: str,
  dtype: str = '',
  layout: str = 'llava',
) -> None:
  """Writes a folder that `PeftModel.from_pretrained` loads.

  Args:
    base: the network that its config names as its base.
    dtype: of the tensors; '': as they are.
    layout: of `names.DECODERS`; peft leaves an adapter of another one at zero.
  """
  folder.mkdir(parents=True, exist_ok=True)
  to = np.dtype(getattr(ml_dtypes, dtype, dtype)) if dtype else None
  tensors = {
    names.peft_name(linear, layer, side, layout): value[layer].astype(to or value.dtype)
    for linear in lora.targets
    for side in 'ab'
    for value in (np.asarray(flat[f'llama/layers/{linear}/{side}']),)
    for layer in range(value.shape[0])
  }
  shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
  file = Writer(folder / 'adapter_model.safetensors', shapes, {'format': 'pt'})
  for name, value in tensors.items():
    file.put(name, value)
  file.close()
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
    'lora_dropout': lora.dropout,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    # a pattern on the full name: CLIP has linears of these names too
    'target_modules': (
      r'(model\.|language_model\.)*layers\.\d+\.('
      + '|'.join(names.MODULES[name].replace('.', r'\.') for name in lora.targets)
      + ')'
    ),
  }
  (folder / 'adapter_config.json').write_text(json.dumps(config, indent=2) + '\n')
