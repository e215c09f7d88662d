"""Sizes of a network: `model.json` of our bases, and `config.json` of other people's.

Shapes of tensors decide where they can (width, layers, patches); the file states what
no shape tells: heads, epsilons, rotary base, the hidden state that the projector reads.
"""

import dataclasses
import json
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.settings.build import ConfigError, flatten, from_config_dict
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import (
  clip_config,
  config_fields,
  llama_config,
  nf4_files,
  preprocessor,
)
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.json_section import Section, read_json
from vlm_rlaif_jax.weights.tensors import Tensors

# ---------------------------------------------------------------- model.json

ASPECT, OWN_TOWER = 'aspect', 'own_tower'  # fields beside those of `VlmConfig`


def read_model_json(path: pathlib.Path) -> VlmConfig:
  """Returns the sizes in one of our base folders."""
  nested: dict[str, Any] = {}
  for name, value in read_json(path).items():
    *parents, last = name.split('.')
    node = nested
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ConvertError(
          f'{path}: {parent} is {reprlib.repr(node)}, expected fields, as {name} is one'
        )
    node[last] = value
  nested.pop('attention', None)  # a setting that earlier bases had
  for name in (ASPECT, OWN_TOWER):
    nested.pop(name, None)
  try:
    return from_config_dict(VlmConfig, nested, path.name)
  except (ConfigError, TypeError, ZeroDivisionError) as error:
    raise ConvertError(f'{path.parent}: {error}') from None


def read_origin(path: pathlib.Path) -> tuple[str, bool]:
  """Returns what `model.json` says beside sizes; '' and False: nothing.

  Returns:
    how frames became squares in training, and whether the tower is none of the hub's.

  Raises:
    ConvertError: a field has a value that cannot be.
  """
  values = read_json(path) if path.is_file() else {}
  section = Section(values, f'{path}: ')
  aspect = section.choice(ASPECT, ('', 'pad', 'crop'))
  return aspect, section.choice(OWN_TOWER, (False, True))


def to_model_json(cfg: VlmConfig, aspect: str = '', own_tower: bool = False) -> str:
  """Returns `model.json`.

  Args:
    aspect, own_tower: see `read_origin`.
  """
  origin = {ASPECT: aspect, OWN_TOWER: own_tower}
  origin = {name: value for name, value in origin.items() if value}
  return json.dumps(flatten(cfg) | origin, indent=1) + '\n'


def with_dtype(cfg: VlmConfig, dtype: str) -> VlmConfig:
  """Returns the same network with activations in the dtype of its weights."""
  return dataclasses.replace(cfg, dtype=dtype)  # type: ignore[arg-type]


# ---------------------------------------------------------------- config.json

_ALL_FIELDS = {*config_fields.DECODER, *config_fields.LLAVA, *config_fields.CLIP}
_SUPPORTED = {  # fields of LLaVA, and the values that our network computes
  'mm_use_im_start_end': (False, None),
  'mm_use_im_patch_token': (False, True, None),  # a token that no prompt has
  'mm_patch_merge_type': ('flat', None),
  'image_aspect_ratio': ('pad', 'square', None),
  'use_mm_proj': (True, None),
  'multimodal_projector_bias': (True, None),
}


def read_config_json(
  tensors: Tensors, config: Section, clip: Section, dtype: str
) -> VlmConfig:
  """Returns the sizes of a foreign network; those of absent parts stay at defaults.

  Args:
    tensors: by neutral name.
    config: of the checkpoint.
    clip: of a CLIP checkpoint that completes it, or empty.
    dtype: of activations.

  Raises:
    ConvertError: names the field that is missing, or whose value our networks do not
      support.
  """
  is_clip = config.choice('model_type', clip_config.MODEL_TYPES).startswith('clip')
  source = config if is_clip else clip
  if not is_clip:
    check_llava(config)
  kind = source.choice('model_type', clip_config.MODEL_TYPES)
  fields = config_fields.CLIP if kind.startswith('clip') else _ALL_FIELDS
  config_fields.check_checkpoint(source, fields)
  vision_config, text_config, joint = clip_config.split_sections(source)
  if not is_clip and (own := config.section('vision_config')).values:
    vision_config = own
  decoder = Section({}) if is_clip else llama_config.text_section(config)
  try:
    llama = llama_config.read_llama(tensors, decoder)
    vision = clip_config.read_vision(tensors, vision_config, config)
    if 'vision.projection.weight' in tensors:
      joint = tensors['vision.projection.weight'].shape[0]
    return VlmConfig(
      name=llama_config.size_name(llama.width, llama.layers),
      vision=vision,
      text=clip_config.read_text(tensors, text_config),
      joint=joint,
      projector=_projector(config),  # type: ignore[arg-type]
      llama=llama,
      dtype=dtype,  # type: ignore[arg-type]
    )
  except ValueError as error:
    if isinstance(error, ConvertError):
      raise
    raise ConvertError(f'{config.path}{error}') from None


def check_llava(config: Section) -> None:
  """Raises ConvertError for a field of `config.json` that asks for another network."""
  for name, supported in _SUPPORTED.items():
    config.choice(name, supported)
  config_fields.check_checkpoint(config, _ALL_FIELDS)
  nf4_files.check_quantization(config.section('quantization_config'))


def check_adapter_config(folder: pathlib.Path, cfg: VlmConfig) -> str:
  """Returns how frames become squares by the files beside an adapter; '': no word.

  LLaVA reads those, and not the base's.

  Args:
    cfg: of the network under the adapter.

  Raises:
    ConvertError: it is of another network.
  """
  config = _read_config(folder)
  _check_same_network(config, cfg, 'adapter')
  return read_aspect(folder, config, cfg.vision.image_size)


def check_projector_config(folder: pathlib.Path, cfg: VlmConfig) -> None:
  """Raises ConvertError if LLaVA's config beside a projector is of another network.

  Args:
    cfg: of the network that gets the projector.
  """
  config = _read_config(folder)
  if any(name in config.values for name in (*_PROJECTOR, *clip_config.FEATURE_LAYER)):
    _check_same_network(config, cfg, 'projector')


def _read_config(folder: pathlib.Path) -> Section:
  path = folder / 'config.json'
  return Section(read_json(path) if path.is_file() else {}, f'{path}: ')


def _check_same_network(config: Section, cfg: VlmConfig, part: str) -> None:
  """Raises ConvertError if a config that lies beside a part is of another network.

  Args:
    part: of a network, in the error.
  """
  check_llava(config)
  clip_config.check_selection(config)
  text = llama_config.text_section(config)
  theta = llama_config.check_decoder(text)
  own = {name: getattr(cfg.llama, size) for name, size in llama_config.SIZES.items()}
  checks = [(text, name, value) for name, value in own.items()]
  checks += [(config, n, cfg.vision.feature_layer) for n in clip_config.FEATURE_LAYER]
  where = f'as in the network under the {part}'
  for section, name, value in checks:
    if section.values.get(name) not in (None, value):
      raise section.error(name, f'{value} {where}')
  if _projector(config, cfg.projector) != cfg.projector:
    raise config.error(config.first_present(*_PROJECTOR), f'{cfg.projector} {where}')
  if theta not in (None, cfg.llama.rope_theta):
    raise text.error('rope_theta', f'{cfg.llama.rope_theta:g} {where}')


_RATIOS = {'pad': 'pad', 'crop': 'square'}  # of LLaVA, whose 'square' is a crop


def read_aspect(folder: pathlib.Path, config: Section, size: int = 0) -> str:
  """Returns how frames become squares; '' where the files of a folder do not say.

  LLaVA's `image_aspect_ratio` does, and a processor that pads. One that crops says
  nothing: it is CLIP's own, and stands beside networks that were trained on padded
  frames, as that of `llava-1.5-7b-hf`. Files of CLIP alone do not say it, either: the
  network decides that the tower will be a part of.

  Args:
    config: `config.json`; may be empty.
    size: pixels of an edge that the tower reads; 0: not known.

  Raises:
    ConvertError: `config.json` crops, and the processor pads.
  """
  ratio = config.choice('image_aspect_ratio', (None, *_RATIOS.values()))
  aspect = next((name for name, value in _RATIOS.items() if value == ratio), '')
  processor = preprocessor.read(folder, size)
  if str(config.values.get('model_type')).startswith('clip'):
    return ''
  if processor != 'pad' or aspect == 'pad':
    return aspect
  if aspect == 'crop':
    raise config.error(
      'image_aspect_ratio',
      f"'pad' as {preprocessor.FILE} makes squares; correct the file that does not say "
      'how the network was trained',
    )
  return processor


_PROJECTOR = ('mm_projector_type', 'projector_hidden_act')
_KINDS = {'gelu': 'gelu', 'mlp2x_gelu': 'gelu', 'relu': 'relu', 'mlp2x_relu': 'relu'}


def _projector(config: Section, default: str = 'gelu') -> str:
  """Returns the activation of the projector, by every field that states it.

  Args:
    default: where none does.
  """
  stated = {
    name: _KINDS[config.choice(name, tuple(_KINDS))]
    for name in _PROJECTOR
    if name in config.values
  }
  for name, kind in stated.items():
    if kind != next(iter(stated.values())):
      raise config.error(name, f'that of {next(iter(stated))}')
  return next(iter(stated.values()), default)


def to_config_json(
  cfg: VlmConfig,
  layout: str,
  dtype: str,
  image_token: int,
  *,
  tower: str = '',
  aspect: str = 'pad',
  ids: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Returns `config.json` of an exported checkpoint.

  Args:
    layout: 'llava' or 'hf'.
    dtype: of the weights.
    image_token: id of <image> in the hf layout: the first after the text.
    tower: in the llava layout: name or folder of the vision tower.
    aspect: how frames become squares.
    ids: bos, eos and pad of the tokenizer; None: those of LLaMA.
  """
  llama = llama_config.to_llama(cfg.llama, dtype, **(ids or {}))
  if layout == 'llava':
    return {
      'architectures': ['LlavaLlamaForCausalLM'],
      'model_type': 'llava',
      **llama,
      'mm_projector_type': f'mlp2x_{cfg.projector}',
      'mm_hidden_size': cfg.vision.width,
      'mm_vision_select_layer': cfg.vision.feature_layer,
      'mm_vision_select_feature': 'patch',
      'mm_vision_tower': tower,
      'mm_use_im_start_end': False,
      'mm_use_im_patch_token': False,
      'image_aspect_ratio': _RATIOS[aspect],
      'vision_config': clip_config.to_vision(cfg),
    }
  text = {'model_type': 'llama', **llama}
  return {
    'architectures': ['LlavaForConditionalGeneration'],
    'model_type': 'llava',
    'text_config': {**text, 'vocab_size': image_token + padding(image_token)},
    'vision_config': clip_config.to_vision(cfg),
    'image_token_index': image_token,
    'image_seq_length': cfg.vision.patches,
    'image_aspect_ratio': _RATIOS[aspect],
    'projector_hidden_act': cfg.projector,
    'vision_feature_layer': cfg.vision.feature_layer,
    'vision_feature_select_strategy': 'default',
    'tie_word_embeddings': False,
    'torch_dtype': dtype,
  }


def padding(vocab: int) -> int:
  """Returns the rows that the hf layout adds: <image>, <pad>, to a multiple of 64."""
  return -(vocab + 2) % 64 + 2
