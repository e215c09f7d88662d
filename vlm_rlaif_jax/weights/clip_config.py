"""CLIP's sections of `config.json` <-> `ClipVisionConfig` and `ClipTextConfig`."""

import math
from typing import Any

from vlm_rlaif_jax.settings.models import ClipTextConfig, ClipVisionConfig, VlmConfig
from vlm_rlaif_jax.weights import config_fields, names
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.json_section import Section
from vlm_rlaif_jax.weights.tensors import Tensors, shape_of

MODEL_TYPES = ('', 'llama', 'llava', 'llava_llama', 'clip', 'clip_vision_model',
               'clip_text_model')  # fmt: skip
FEATURE_LAYER = ('mm_vision_select_layer', 'vision_feature_layer')
_TOWER_LAYERS = {(1024, 14): 24}  # by width and patch: CLIP's ViT-L/14
# transformers' defaults, which a section leaves out
_DEFAULT_LAYERS, _DEFAULT_HEADS, _DEFAULT_TEXT_HEADS = 12, 12, 8


def split_sections(config: Section) -> tuple[Section, Section, int]:
  """Returns the sections of vision and text tower and the width of their embedding.

  Args:
    config: of a CLIP checkpoint, of both towers or of one.
  """
  kind = config.choice('model_type', MODEL_TYPES)
  joint = config.integer('projection_dim', 768)
  if kind == 'clip_vision_model':
    return config, Section({}), joint
  if kind == 'clip_text_model':
    return Section({}), config, joint
  for name in ('vision_config', 'text_config'):
    config_fields.check_repeated(config, name)
  return config.section('vision_config'), config.section('text_config'), joint


def read_vision(
  tensors: Tensors, config: Section, checkpoint: Section
) -> ClipVisionConfig:
  """Returns the sizes of the vision tower; the defaults where there is none.

  Args:
    tensors: by neutral name.
    config: section of the tower; empty in the released checkpoints.
    checkpoint: names which hidden state the projector reads.
  """
  patches = shape_of(tensors, 'vision.embeddings.patch_embedding.weight', 4)
  rows = shape_of(tensors, 'vision.embeddings.position_embedding.weight', 2)
  if patches is None or rows is None:
    return ClipVisionConfig()
  config.choice('model_type', ('', 'clip', 'clip_vision_model'))
  config.choice('hidden_act', ('quick_gelu',))
  config.choice('num_channels', (3,))
  config_fields.reject_unknown(config, config_fields.CLIP)
  check_selection(checkpoint)
  width, patch, side = patches[0], patches[-1], math.isqrt(rows[0] - 1)
  if not side:
    raise ConvertError(
      f'vision.embeddings.position_embedding.weight has shape {rows}, expected a row '
      'for the class and one a patch'
    )
  default = _DEFAULT_LAYERS if config.values else _TOWER_LAYERS.get((width, patch))
  if default is None:
    raise config.error(
      'num_hidden_layers',
      f'that of a tower of width {width} and patch {patch}; give --vision',
    )
  layers = config.integer('num_hidden_layers', default)
  feature_layer = _feature_layer(tensors, config, checkpoint, layers)
  mlp = shape_of(tensors, 'vision.encoder.layers.0.mlp.fc1.weight', 2)
  return ClipVisionConfig(
    image_size=side * patch,
    patch_size=patch,
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=layers,
    heads=_heads(config, width, _DEFAULT_HEADS),
    feature_layer=feature_layer,
    eps=config.positive('layer_norm_eps', 1e-5),
  )


def _heads(config: Section, width: int, default: int) -> int:
  """Returns the heads of a tower; where no section states them, CLIP's have 64 each.

  Args:
    default: of transformers, whose files leave it out.
  """
  by_width = width // 64 or None
  left_out = config.values and width % default == 0
  return config.integer('num_attention_heads', default if left_out else by_width)


def check_selection(checkpoint: Section) -> None:
  """Raises ConvertError if the projector reads more than the patches of a frame."""
  checkpoint.choice('mm_vision_select_feature', ('patch', None))
  checkpoint.choice('vision_feature_select_strategy', ('default',))


def _feature_layer(
  tensors: Tensors, config: Section, checkpoint: Section, layers: int
) -> int:
  """Returns which hidden state the projector reads, counted from the last: -1.

  Layers behind it may be absent.
  """
  field = checkpoint.first_present(*FEATURE_LAYER)
  feature_layer = checkpoint.values.get(field, -2)
  for other in FEATURE_LAYER:
    if checkpoint.values.get(other, feature_layer) != feature_layer:
      raise checkpoint.error(other, f'{feature_layer!r} as in {field}')
  if type(feature_layer) is not int or not -layers <= feature_layer < 0:
    raise checkpoint.error(field, f'an integer from {-layers} to -1')
  needed = layers + feature_layer + 1
  count = names.count_layers(tensors, r'vision\.encoder\.layers\.(\d+)\.')
  if count < needed:
    raise ConvertError(
      f'{config.path}expected {layers} layers of the tower (num_hidden_layers), or '
      f'{needed} without those behind the feature layer, found {count}'
    )
  return feature_layer


def read_text(tensors: Tensors, config: Section) -> ClipTextConfig:
  """Returns the sizes of the text tower; the defaults where there is none."""
  table = shape_of(tensors, 'text.embeddings.token_embedding.weight', 2)
  rows = shape_of(tensors, 'text.embeddings.position_embedding.weight', 2)
  if table is None or rows is None:
    return ClipTextConfig()
  config.choice('hidden_act', ('quick_gelu',))
  config_fields.reject_unknown(config, config_fields.CLIP)
  vocab, width = table
  mlp = shape_of(tensors, 'text.encoder.layers.0.mlp.fc1.weight', 2)
  layers = config.integer('num_hidden_layers', _DEFAULT_LAYERS)
  pattern = r'text\.encoder\.layers\.(\d+)\.'
  names.check_layers(tensors, pattern, layers, 'text tower', config.path)
  eos = config.integer('eos_token_id', vocab - 1, least=0)
  return ClipTextConfig(
    vocab=vocab,
    context=rows[0],
    width=width,
    mlp=mlp[0] if mlp else 4 * width,
    layers=layers,
    heads=_heads(config, width, _DEFAULT_TEXT_HEADS),
    eps=config.positive('layer_norm_eps', 1e-5),
    # 2 stands in old files; CLIP then takes the largest id, which is the last one.
    eos_id=vocab - 1 if eos == 2 else eos,
  )


def to_vision(cfg: VlmConfig) -> dict[str, Any]:
  """Returns the section of the vision tower in `config.json`."""
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
