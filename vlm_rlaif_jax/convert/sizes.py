"""`config.json` and the shapes of tensors -> `VlmConfig`, and back.

Shapes decide where they can (width, layers, patches); the file says what no shape
tells: heads, epsilons, the rotary base, which hidden state the projector reads.
"""

import dataclasses
import json
import math
from typing import Any

from vlm_rlaif_jax.config.build import ConfigError, flatten, from_config_dict
from vlm_rlaif_jax.config.models import (
  ClipTextConfig,
  ClipVisionConfig,
  LlamaConfig,
  VlmConfig,
)
from vlm_rlaif_jax.convert.files import ConvertError, Tensors, read_json
from vlm_rlaif_jax.convert.names import counted

RELEASED = {(4096, 32): '7b', (5120, 40): '13b'}  # width, layers of the decoder


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
    node[last] = value
  try:
    return from_config_dict(VlmConfig, nested, path.name)
  except (ConfigError, TypeError) as error:
    raise ConvertError(f'{path.parent}: {error}') from None


def to_model_json(cfg: VlmConfig) -> str:
  return json.dumps(flatten(cfg), indent=1) + '\n'


def of_foreign(tensors: Tensors, config: dict, clip: dict, dtype: str) -> VlmConfig:
  """Sizes of the parts that are there; those of the absent ones stay at defaults.

  Args:
    tensors: by neutral name.
    config: of the checkpoint, `config.json`; {} if it has none.
    clip: the same of a CLIP checkpoint that was given beside it, or {}.
  """
  try:
    kind = config.get('model_type', '')
    is_clip = kind.startswith('clip')
    llama = _llama(tensors, {} if is_clip else config.get('text_config') or config)
    vision_config, text_config, joint = _clip_sections(config if is_clip else clip)
    layer = config.get('mm_vision_select_layer', config.get('vision_feature_layer', -2))
    vision = _vision(tensors, config.get('vision_config') or vision_config, layer)
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
  except (TypeError, ValueError, AttributeError) as error:
    if isinstance(error, ConvertError):
      raise
    raise ConvertError(f'config.json: {error}') from None


def _clip_sections(config: dict) -> tuple[dict, dict, int]:
  kind = config.get('model_type', '')
  joint = config.get('projection_dim', 768)
  if kind == 'clip_vision_model':
    return config, {}, joint
  if kind == 'clip_text_model':
    return {}, config, joint
  return config.get('vision_config') or {}, config.get('text_config') or {}, joint


def _same(config: dict, name: str, wanted, *, default=None) -> None:
  value = config.get(name, wanted if default is None else default)
  if value != wanted:
    raise ConvertError(f'config.json: {name} is {value!r}, only {wanted!r} is known')


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...] | None:
  """The shape of a tensor that sizes are read from; None where it is absent."""
  if name not in tensors:
    return None
  shape = tuple(tensors[name].shape)
  if len(shape) != rank:
    raise ConvertError(f'{name} has shape {shape}, expected {rank} axes')
  return shape


def _llama(tensors: Tensors, config: dict) -> LlamaConfig:
  table = _shape(tensors, 'model.embed_tokens.weight', 2)
  if table is None:
    return LlamaConfig()
  _same(config, 'hidden_act', 'silu')
  scaling = config.get('rope_scaling') or {}
  parameters = config.get('rope_parameters') or {}
  for section in (scaling, parameters):
    kind = section.get('rope_type', section.get('type', 'default'))
    if kind != 'default':
      raise ConvertError(f'config.json: rope type {kind!r}, only default is known')
  vocab, width = table
  heads = config.get('num_attention_heads', 32)
  head_dim = config.get('head_dim') or width // heads
  mlp = _shape(tensors, 'model.layers.0.mlp.gate_proj.weight', 2)
  return LlamaConfig(
    vocab=vocab,
    width=width,
    mlp=mlp[0] if mlp else config.get('intermediate_size', 11008),
    layers=config.get('num_hidden_layers')
    or counted(tensors, r'model\.layers\.(\d+)\.'),
    heads=heads,
    kv_heads=config.get('num_key_value_heads') or heads,
    head_dim=head_dim,
    max_positions=config.get('max_position_embeddings', 4096),
    rope_theta=float(parameters.get('rope_theta', config.get('rope_theta') or 10000.0)),
    # transformers' own default, where a file leaves it out
    eps=config.get('rms_norm_eps', 1e-6),
  )


def _vision(tensors: Tensors, config: dict, layer: int) -> ClipVisionConfig:
  patch = _shape(tensors, 'vision.embeddings.patch_embedding.weight', 4)
  rows = _shape(tensors, 'vision.embeddings.position_embedding.weight', 2)
  if patch is None or rows is None:
    return ClipVisionConfig()
  _same(config, 'hidden_act', 'quick_gelu')
  width, side = patch[0], math.isqrt(rows[0] - 1)
  mlp = _shape(tensors, 'vision.encoder.layers.0.mlp.fc1.weight', 2)
  return ClipVisionConfig(
    image_size=side * patch[-1],
    patch_size=patch[-1],
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=config.get('num_hidden_layers')
    or counted(tensors, r'vision\.encoder\.layers\.(\d+)\.'),
    heads=config.get('num_attention_heads', width // 64),
    feature_layer=layer,
    eps=config.get('layer_norm_eps', 1e-5),
  )


def _text(tensors: Tensors, config: dict) -> ClipTextConfig:
  table = _shape(tensors, 'text.embeddings.token_embedding.weight', 2)
  rows = _shape(tensors, 'text.embeddings.position_embedding.weight', 2)
  if table is None or rows is None:
    return ClipTextConfig()
  _same(config, 'hidden_act', 'quick_gelu')
  vocab, width = table
  mlp = _shape(tensors, 'text.encoder.layers.0.mlp.fc1.weight', 2)
  eos = config.get('eos_token_id', vocab - 1)
  return ClipTextConfig(
    vocab=vocab,
    context=rows[0],
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=config.get('num_hidden_layers')
    or counted(tensors, r'text\.encoder\.layers\.(\d+)\.'),
    heads=config.get('num_attention_heads', width // 64),
    eps=config.get('layer_norm_eps', 1e-5),
    # 2 stands in old files; CLIP then takes the largest id, which is the last one.
    eos_id=vocab - 1 if eos == 2 else eos,
  )


def _projector(config: dict):
  kind = config.get('mm_projector_type', config.get('projector_hidden_act', 'gelu'))
  known = {'gelu': 'gelu', 'mlp2x_gelu': 'gelu', 'relu': 'relu', 'mlp2x_relu': 'relu'}
  if kind not in known:
    raise ConvertError(
      f'config.json: projector {kind!r}, known are {", ".join(sorted(known))}'
    )
  return known[kind]


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
