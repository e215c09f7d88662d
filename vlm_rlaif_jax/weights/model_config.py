"""`config.json` and the shapes of tensors -> `VlmConfig`, and back.

Shapes decide where they can (width, layers, patches); the file says what no shape
tells: heads, epsilons, the rotary base, which hidden state the projector reads.
"""

import dataclasses
import json
import math
import reprlib
import sys
from typing import Any

from vlm_rlaif_jax.settings.build import ConfigError, flatten, from_config_dict
from vlm_rlaif_jax.settings.models import (
  ClipTextConfig,
  ClipVisionConfig,
  LlamaConfig,
  VlmConfig,
)
from vlm_rlaif_jax.weights.names import counted
from vlm_rlaif_jax.weights.tensor_files import ConvertError, Tensors, read_json

RELEASED = {(4096, 32): '7b', (5120, 40): '13b'}  # width, layers of the decoder
_TOWERS = {(1024, 14): 24}  # layers by width and patch of CLIP's ViT-L/14
_LAYERS = 12  # of CLIP's towers: a section leaves out what is transformers' default
_KINDS = ('', 'llama', 'llava', 'llava_llama', 'clip', 'clip_vision_model',
          'clip_text_model')  # fmt: skip
_PLAIN = {  # of a decoder, and what ours can mean
  'hidden_act': ('silu',),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
}
_ROPES = ('default',)
_NULLABLE = (  # where null says the same as nothing
  'text_config', 'vision_config', 'rope_scaling', 'rope_parameters', 'rope_theta',
  'num_key_value_heads', 'head_dim',
)  # fmt: skip


def size_name(width: int, layers: int) -> str:
  return RELEASED.get((width, layers), 'custom')


def of_model_json(path) -> VlmConfig:
  """The sizes in one of our base folders."""
  nested: dict[str, Any] = {}
  for name, value in read_json(path).items():
    *parents, last = name.split('.')
    node = nested
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ConvertError(
          f'{path}: {parent} is {reprlib.repr(node)}, but {name} is there too'
        )
    node[last] = value
  nested.pop('attention', None)  # a setting that bases of before had
  try:
    return from_config_dict(VlmConfig, nested, path.name)
  except (ConfigError, TypeError, ZeroDivisionError) as error:
    raise ConvertError(f'{path.parent}: {error}') from None


def to_model_json(cfg: VlmConfig) -> str:
  return json.dumps(flatten(cfg), indent=1) + '\n'


@dataclasses.dataclass(frozen=True)
class Section:
  """A dict of a `config.json`; what it says is checked when it is asked for.

  Attributes:
    path: names it in errors, as in '/x/config.json: vision_config.'.
  """

  values: dict[str, Any]
  path: str = 'config.json: '

  def wrong(self, name: str, expected: str) -> ConvertError:
    found = reprlib.repr(self.values[name]) if name in self.values else 'missing'
    return ConvertError(f'{self.path}{name} is {found}, expected {expected}')

  def named(self, *names: str) -> str:
    """The first of a field's names that is there; the last if none is."""
    return next((name for name in names if name in self.values), names[-1])

  def section(self, name: str) -> 'Section':
    """A dict within; empty where it is absent or null."""
    value = self._get(name, {})
    if not isinstance(value, dict):
      raise self.wrong(name, 'a dict')
    return Section(value, f'{self.path}{name}.')

  def one_of(self, name: str, known: tuple):
    """One of the known values; the first where it is absent."""
    value = self.values.get(name, known[0])
    if value not in known:
      raise self.wrong(name, ' or '.join(repr(item) for item in known if item != ''))
    return value

  def count(self, name: str, default: int | None = None, least: int = 1) -> int:
    """An integer; without a default it must be there."""
    value = self._get(name, default)
    if type(value) is not int or not least <= value < 1 << 31:
      raise self.wrong(name, f'an integer >= {least}')
    return value

  def real(self, name: str, default: float | None = None) -> float:
    value = self._get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise self.wrong(name, 'a positive number')
    if not 0 < value <= sys.float_info.max:
      raise self.wrong(name, 'a positive number')
    return float(value)

  def _get(self, name: str, default):
    value = self.values.get(name, default)
    return default if value is None and name in _NULLABLE else value


def of_foreign(
  tensors: Tensors, config: Section, clip: Section, dtype: str
) -> VlmConfig:
  """Sizes of the parts that are there; those of the absent ones stay at defaults.

  Args:
    tensors: by neutral name.
    config: of the checkpoint.
    clip: of a CLIP checkpoint that was given beside it, or empty.

  Raises:
    ConvertError: names the field that is missing, or that says something that our
      networks are not.
  """
  is_clip = config.one_of('model_type', _KINDS).startswith('clip')
  vision_config, text_config, joint = _clip_sections(config if is_clip else clip)
  if not is_clip and (own := config.section('vision_config')).values:
    vision_config = own
  try:
    llama = _llama(tensors, Section({}) if is_clip else of_text(config))
    vision = _vision(tensors, vision_config, config)
    if 'vision.projection.weight' in tensors:
      joint = tensors['vision.projection.weight'].shape[0]
    return VlmConfig(
      name=size_name(llama.width, llama.layers),
      vision=vision,
      text=_text(tensors, text_config),
      joint=joint,
      projector=_projector(config),  # type: ignore[arg-type]
      llama=llama,
      dtype=dtype,  # type: ignore[arg-type]
    )
  except ValueError as error:
    if isinstance(error, ConvertError):
      raise
    raise ConvertError(f'{config.path}{error}') from None


def of_text(config: Section) -> Section:
  """What says how the decoder is made: a section in Hugging Face's layout."""
  text = config.section('text_config')
  if not text.values:
    return config
  text.one_of('model_type', ('', 'llama'))
  return text


def _clip_sections(config: Section) -> tuple[Section, Section, int]:
  kind = config.one_of('model_type', _KINDS)
  joint = config.count('projection_dim', 768)
  if kind == 'clip_vision_model':
    return config, Section({}), joint
  if kind == 'clip_text_model':
    return Section({}), config, joint
  return config.section('vision_config'), config.section('text_config'), joint


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...] | None:
  """The shape of a tensor that sizes are read from; None where it is absent."""
  if name not in tensors:
    return None
  shape = tuple(tensors[name].shape)
  if len(shape) != rank or 0 in shape:
    raise ConvertError(f'{name} has shape {shape}, expected {rank} axes, none empty')
  return shape


def _check_layers(
  tensors: Tensors, config: Section, layers: int, part: str, pattern: str
) -> None:
  found = counted(tensors, pattern)
  if found < layers:
    raise ConvertError(
      f'{config.path}expected {layers} layers of the {part} (num_hidden_layers), '
      f'found {found}'
    )


def _llama(tensors: Tensors, config: Section) -> LlamaConfig:
  table = _shape(tensors, 'model.embed_tokens.weight', 2)
  if table is None:
    return LlamaConfig()
  for name, known in _PLAIN.items():
    config.one_of(name, known)
  rope = config.section('rope_parameters')
  for section in (config.section('rope_scaling'), rope):
    section.one_of(section.named('rope_type', 'type'), _ROPES)
  vocab, width = table
  released = dict(RELEASED.keys())  # layers by width
  layers = config.count('num_hidden_layers', released.get(width))
  _check_layers(tensors, config, layers, 'decoder', r'model\.layers\.(\d+)\.')
  heads = config.count(
    'num_attention_heads', width // 128 if width in released else None
  )
  mlp = _shape(tensors, 'model.layers.0.mlp.gate_proj.weight', 2)
  return LlamaConfig(
    vocab=vocab,
    width=width,
    mlp=mlp[0] if mlp else config.count('intermediate_size', 11008),
    layers=layers,
    heads=heads,
    kv_heads=config.count('num_key_value_heads', heads),
    head_dim=config.count('head_dim', width // heads),
    max_positions=config.count('max_position_embeddings', 4096),
    rope_theta=rope.real('rope_theta', config.real('rope_theta', 10000.0)),
    # transformers' own default, where a file leaves it out
    eps=config.real('rms_norm_eps', 1e-6),
  )


def _vision(tensors: Tensors, config: Section, whole: Section) -> ClipVisionConfig:
  """Of the tower.

  Args:
    config: of the tower; empty in the released checkpoints.
    whole: of the checkpoint; says which hidden state the projector reads.
  """
  patches = _shape(tensors, 'vision.embeddings.patch_embedding.weight', 4)
  rows = _shape(tensors, 'vision.embeddings.position_embedding.weight', 2)
  if patches is None or rows is None:
    return ClipVisionConfig()
  config.one_of('model_type', ('', 'clip', 'clip_vision_model'))
  config.one_of('hidden_act', ('quick_gelu',))
  whole.one_of('mm_vision_select_feature', ('patch', None))
  whole.one_of('vision_feature_select_strategy', ('default',))
  width, patch, side = patches[0], patches[-1], math.isqrt(rows[0] - 1)
  if not side:
    raise ConvertError(f'vision.embeddings.position_embedding.weight has shape {rows}')
  default = _LAYERS if config.values else _TOWERS.get((width, patch))
  if default is None:
    raise config.wrong(
      'num_hidden_layers',
      f'that of a tower of width {width} and patch {patch}; give --vision',
    )
  layers = config.count('num_hidden_layers', default)
  field = whole.named('mm_vision_select_layer', 'vision_feature_layer')
  feature = whole.values.get(field, -2)
  if type(feature) is not int or not -layers <= feature < 0:
    raise whole.wrong(field, f'an integer from {-layers} to -1')
  kept = layers + feature + 1
  found = counted(tensors, r'vision\.encoder\.layers\.(\d+)\.')
  if found < kept:
    raise ConvertError(
      f'{config.path}expected {layers} layers of the tower (num_hidden_layers), or '
      f'{kept} without those behind the feature layer, found {found}'
    )
  mlp = _shape(tensors, 'vision.encoder.layers.0.mlp.fc1.weight', 2)
  return ClipVisionConfig(
    image_size=side * patch,
    patch_size=patch,
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=layers,
    heads=config.count('num_attention_heads', width // 64 or None),
    feature_layer=feature,
    eps=config.real('layer_norm_eps', 1e-5),
  )


def _text(tensors: Tensors, config: Section) -> ClipTextConfig:
  table = _shape(tensors, 'text.embeddings.token_embedding.weight', 2)
  rows = _shape(tensors, 'text.embeddings.position_embedding.weight', 2)
  if table is None or rows is None:
    return ClipTextConfig()
  config.one_of('hidden_act', ('quick_gelu',))
  vocab, width = table
  mlp = _shape(tensors, 'text.encoder.layers.0.mlp.fc1.weight', 2)
  layers = config.count('num_hidden_layers', _LAYERS)
  pattern = r'text\.encoder\.layers\.(\d+)\.'
  _check_layers(tensors, config, layers, 'text tower', pattern)
  eos = config.count('eos_token_id', vocab - 1, least=0)
  return ClipTextConfig(
    vocab=vocab,
    context=rows[0],
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=layers,
    heads=config.count('num_attention_heads', width // 64 or None),
    eps=config.real('layer_norm_eps', 1e-5),
    # 2 stands in old files; CLIP then takes the largest id, which is the last one.
    eos_id=vocab - 1 if eos == 2 else eos,
  )


def _projector(config: Section) -> str:
  field = config.named('mm_projector_type', 'projector_hidden_act')
  known = {'gelu': 'gelu', 'mlp2x_gelu': 'gelu', 'relu': 'relu', 'mlp2x_relu': 'relu'}
  return known[config.one_of(field, tuple(known))]


# ---------------------------------------------------------------- out


def to_llama(cfg: VlmConfig, dtype: str) -> dict:
  llama = cfg.llama
  return {
    'vocab_size': llama.vocab,
    'hidden_size': llama.width,
    'intermediate_size': llama.mlp,
    'num_hidden_layers': llama.layers,
    'num_attention_heads': llama.heads,
    'num_key_value_heads': llama.kv_heads,
    'head_dim': llama.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': llama.max_positions,
    'rms_norm_eps': llama.eps,
    'rope_theta': llama.rope_theta,
    'tie_word_embeddings': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0,
    'torch_dtype': dtype,
  }


def to_vision(cfg: VlmConfig) -> dict:
  vision = cfg.vision
  return {
    'model_type': 'clip_vision_model',
    'hidden_size': vision.width,
    'intermediate_size': vision.mlp,
    'num_hidden_layers': vision.layers,
    'num_attention_heads': vision.heads,
    'image_size': vision.image_size,
    'patch_size': vision.patch_size,
    'layer_norm_eps': vision.eps,
    'hidden_act': 'quick_gelu',
    'projection_dim': cfg.joint,
  }


def to_config_json(cfg: VlmConfig, layout: str, dtype: str, image_token: int) -> dict:
  """`config.json` of an exported checkpoint, 'llava' or 'hf'."""
  if layout == 'llava':
    return {
      'architectures': ['LlavaLlamaForCausalLM'],
      'model_type': 'llava',
      **to_llama(cfg, dtype),
      'mm_projector_type': f'mlp2x_{cfg.projector}',
      'mm_hidden_size': cfg.vision.width,
      'mm_vision_select_layer': cfg.vision.feature_layer,
      'mm_vision_select_feature': 'patch',
      'mm_vision_tower': 'openai/clip-vit-large-patch14-336',
      'mm_use_im_start_end': False,
      'mm_use_im_patch_token': False,
      'image_aspect_ratio': 'pad',
      'vision_config': to_vision(cfg),
    }
  text = {'model_type': 'llama', **to_llama(cfg, dtype)}
  return {
    'architectures': ['LlavaForConditionalGeneration'],
    'model_type': 'llava',
    'text_config': {**text, 'vocab_size': image_token + padding(image_token)},
    'vision_config': to_vision(cfg),
    'image_token_index': image_token,
    'image_seq_length': cfg.vision.patches,
    'projector_hidden_act': cfg.projector,
    'vision_feature_layer': cfg.vision.feature_layer,
    'vision_feature_select_strategy': 'default',
    'tie_word_embeddings': False,
    'torch_dtype': dtype,
  }


def padding(vocab: int) -> int:
  """Rows that Hugging Face's layout adds: <image>, <pad>, up to a multiple of 64."""
  return -(vocab + 2) % 64 + 2


def with_dtype(cfg: VlmConfig, dtype: str) -> VlmConfig:
  """The same network with activations in the dtype of its weights."""
  return dataclasses.replace(cfg, dtype=dtype)  # type: ignore[arg-type]
