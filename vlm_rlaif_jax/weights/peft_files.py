"""PEFT adapters and scalar heads, in and out.

<folder>[/adapter_model][/lora_default]/adapter_config.json
                                        adapter_model.bin | .safetensors
<folder>/reward_head, value_head.pt     weight [1, D], bias [1]
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.settings.models import LINEARS, LoraConfig, VlmConfig
from vlm_rlaif_jax.weights import file_writer, model_config, names, tensor_files
from vlm_rlaif_jax.weights.tensor_files import ConvertError, listed

_PLAIN = {  # fields of adapter_config.json, and what ours can mean
  'bias': ('none',),
  'fan_in_fan_out': (False,),
  'use_dora': (False, None),
  'lora_bias': (False, None),
  'layer_replication': (None, []),
  'modules_to_save': (None, []),
  'rank_pattern': ({}, None),
  'alpha_pattern': ({}, None),
}
_STARTS = (  # of the decoder's modules, by network
  '', 'model.', 'language_model.model.', 'model.language_model.',
)  # fmt: skip


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
    """Of the decoder that it is for."""
    for name, value in self.flat.items():
      linear, side = name.split('/')[2:]
      if side == 'a' and linear in ('q', 'k', 'v', 'gate', 'up'):
        return value.shape[2]
      if side == 'b' and linear in ('o', 'down'):
        return value.shape[1]
    raise ConvertError('an adapter without linears')

  def describe(self) -> str:
    size = model_config.size_name(self.width, self.layers)
    return (
      f'adapter of rank {self.lora.rank} on {", ".join(self.lora.targets)} for a '
      f'decoder of {self.layers} layers and width {self.width} ({size})'
    )


def find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Adapters below a folder: `{'': ...}`, or 'policy' and 'value' of PPO's.

  {} if there is none. Raises ConvertError for a value adapter alone.
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


def read(folder: pathlib.Path) -> Adapter:
  """The adapter of one folder; the rank is read off the tensors and must agree."""
  path = folder / 'adapter_config.json'
  config = tensor_files.read_json(path)
  if config.get('peft_type', 'LORA') != 'LORA':
    raise ConvertError(f'{path}: peft_type {config["peft_type"]!r}, only LORA is known')
  for field, known in _PLAIN.items():
    if config.get(field, known[0]) not in known:
      raise ConvertError(f'{path}: {field} {config[field]!r} is not supported')
  stored = None
  for name in ('adapter_model.safetensors', 'adapter_model.bin'):
    if (folder / name).is_file():
      stored = tensor_files.read_file(folder / name)
      break
  if stored is None:
    raise ConvertError(f'{folder}: no adapter_model.safetensors or adapter_model.bin')
  said = model_config.Section(config, f'{path}: ')
  rank, alpha = said.count('r'), said.real('lora_alpha')
  dropout = config.get('lora_dropout') or 0.0
  if type(dropout) not in (int, float) or not 0 <= dropout < 1:
    raise said.wrong('lora_dropout', 'a number in [0, 1)')
  if config.get('use_rslora'):
    alpha *= rank**0.5  # scaled by alpha / sqrt(rank) there, by alpha / rank here
  found, strange = {}, []
  for name, tensor in stored.items():
    key = names.adapted(name)
    if key is None:
      strange.append(f'left over {name} {tensor.shape}')
    elif key in found:
      strange.append(f'two tensors mean {names.peft_name(*key)}, one of them {name}')
    else:
      found[key] = tensor
  if strange or not found:
    raise ConvertError(
      f'{folder}: {listed(strange) or "holds no adapter of the decoder"}'
    )
  flat = _stacked(folder, found, rank)
  targets = tuple(n for n in LINEARS if f'llama/layers/{n}/a' in flat)
  layers = 1 + max(layer for _, layer, _ in found)
  lost = [names.MODULES[n] for n in _asked(said, layers) if n not in targets]
  if lost:
    raise ConvertError(
      f'{folder}: missing the adapter of {listed(lost)}, which target_modules of '
      f'{path.name} names'
    )
  lora = LoraConfig(rank=rank, alpha=alpha, dropout=float(dropout), targets=targets)
  return Adapter(flat, lora, str(config.get('base_model_name_or_path') or ''))


def _asked(config: model_config.Section, layers: int) -> list[str]:
  """The linears that an adapter's config names as its targets."""
  asked = _matcher(config, 'target_modules')
  left_out = _matcher(config, 'exclude_modules')
  return [
    linear
    for linear, module in names.MODULES.items()
    if any(
      asked(name) and not left_out(name)
      for start in _STARTS
      for layer in range(layers)
      for name in (f'{start}layers.{layer}.{module}',)
    )
  ]


def _matcher(config: model_config.Section, field: str) -> Callable[[str], object]:
  """Whether a field means a module, as PEFT reads it: ends of names, or a pattern."""
  value = config.values.get(field)
  if value == 'all-linear':
    return lambda name: True
  if isinstance(value, str):
    try:
      return re.compile(value).fullmatch
    except re.error as error:
      raise config.wrong(field, f'a pattern ({error})') from None
  if not (value is None or isinstance(value, list)):
    raise config.wrong(field, 'a list of names or a pattern')
  ends = tuple(f'.{end}' for end in value or ())
  return lambda name: f'.{name}'.endswith(ends)


def _stacked(folder, found: dict, rank: int) -> dict[str, np.ndarray]:
  """Layers of each linear in one array; holes and odd shapes are listed."""
  layers = 1 + max(layer for _, layer, _ in found)
  linears = {linear for linear, _, _ in found}
  problems, flat = [], {}
  for linear in LINEARS:
    for side in 'ab':
      if linear not in linears:
        continue
      keys = [(linear, layer, side) for layer in range(layers)]
      lost = [names.peft_name(*key) for key in keys if key not in found]
      problems += [f'missing {name}' for name in lost]
      if lost:
        continue
      shape, dtype = found[keys[0]].shape, found[keys[0]].dtype
      for key in keys:
        name, other = names.peft_name(*key), found[key].shape
        axis = 0 if side == 'a' else -1
        if len(other) != 2 or other[axis] != rank or other != shape:
          problems.append(f'{name} has shape {other}, rank {rank} was expected')
        kind = found[key].dtype
        if not tensor_files.is_floating(kind):
          problems.append(f'{name} has dtype {kind}, expected a floating one')
        elif kind != dtype:
          problems.append(f'{name} has dtype {kind}, layer 0 has {dtype}')
      if not problems:
        flat[f'llama/layers/{linear}/{side}'] = np.stack(
          [
            tensor_files.floats(folder, names.peft_name(*key), found[key].read())
            for key in keys
          ]
        )
  if problems:
    raise ConvertError(f'{folder}: {listed(problems)}')
  return flat


def check(adapter: Adapter, cfg: VlmConfig, where, base) -> None:
  """Refuses an adapter that was made for a decoder of another size."""
  llama = cfg.llama
  if (adapter.layers, adapter.width) != (llama.layers, llama.width):
    raise ConvertError(
      f'{where}: made for a decoder of {adapter.layers} layers and width '
      f'{adapter.width} ({model_config.size_name(adapter.width, adapter.layers)}); {base} has '
      f'{llama.layers} layers and width {llama.width} ({cfg.name})'
    )
  shapes = {leaf.name: leaf.shape for leaf in names.leaves(cfg) if leaf.is_linear}
  problems = []
  for name, value in adapter.flat.items():
    out, fan_in = shapes[f'{name[:-2]}/w']
    wanted = (
      (adapter.lora.rank, fan_in) if name[-1] == 'a' else (out, adapter.lora.rank)
    )
    if value.shape[1:] != wanted:
      problems.append(f'{name} has shape {value.shape[1:]} a layer, expected {wanted}')
  if problems:
    raise ConvertError(f'{where}: does not fit {base}: {listed(problems)}')


def write(
  folder: pathlib.Path,
  flat: dict,
  lora: LoraConfig,
  base: str,
  dtype: str = '',
  layout: str = 'llava',
) -> None:
  """A folder that `PeftModel.from_pretrained` loads.

  Args:
    base: what its config names as its base.
    dtype: of the tensors; '': as they are.
    layout: of `names.DECODERS`; peft leaves an adapter of another one at zero.
  """
  folder.mkdir(parents=True, exist_ok=True)
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype)) if dtype else None
  tensors = {
    names.peft_name(linear, layer, side, layout): value[layer].astype(
      kind or value.dtype
    )
    for linear in lora.targets
    for side in 'ab'
    for value in (np.asarray(flat[f'llama/layers/{linear}/{side}']),)
    for layer in range(value.shape[0])
  }
  shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
  file = file_writer.Writer(
    folder / 'adapter_model.safetensors', shapes, {'format': 'pt'}
  )
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
    # a pattern on the whole name: CLIP has linears of these names too
    'target_modules': (
      r'(model\.|language_model\.)*layers\.\d+\.('
      + '|'.join(names.MODULES[name].replace('.', r'\.') for name in lora.targets)
      + ')'
    ),
  }
  (folder / 'adapter_config.json').write_text(json.dumps(config, indent=2) + '\n')


# ---------------------------------------------------------------- heads


def find_head(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """`reward_head` or `value_head.pt` of a checkpoint folder, or of the two above it."""
  for place in (folder, folder.parent, folder.parent.parent):
    if (place / name).is_file():
      return place / name
  return None


def read_head(path: pathlib.Path) -> dict[str, np.ndarray]:
  """`{'w': float32[D], 'b': float32[]}`; refuses what is not finite."""
  found = tensor_files.read_file(path)
  shapes = {name: tensor.shape for name, tensor in found.items()}
  weight = shapes.get('weight', ())
  if (
    set(shapes) != {'weight', 'bias'}
    or len(weight) != 2
    or weight[0] != 1
    or shapes['bias'] != (1,)
  ):
    raise ConvertError(f'{path}: expected weight (1, D) and bias (1,), found {shapes}')
  values = {
    name: tensor_files.floats(path, name, tensor.read()).astype(np.float32)
    for name, tensor in found.items()
  }
  return {'w': values['weight'][0], 'b': values['bias'][0]}


def check_head(head: dict, cfg: VlmConfig, where) -> None:
  if head['w'].shape != (cfg.llama.width,):
    raise ConvertError(
      f'{where}: is for width {head["w"].shape[0]}, the decoder has width '
      f'{cfg.llama.width} ({cfg.name})'
    )


def write_head(path: pathlib.Path, head: dict) -> None:
  file_writer.write_torch(
    path,
    {
      'weight': np.asarray(head['w'], np.float32)[None],
      'bias': np.asarray(head['b'], np.float32).reshape(1),
    },
  )
