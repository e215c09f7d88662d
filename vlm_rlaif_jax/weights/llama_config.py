"""The decoder's section of `config.json` <-> `LlamaConfig`."""

from typing import Any

from vlm_rlaif_jax.settings.models import LlamaConfig
from vlm_rlaif_jax.weights import config_fields, names
from vlm_rlaif_jax.weights.json_section import Section
from vlm_rlaif_jax.weights.tensors import Tensors, shape_of

RELEASED = {(4096, 32): '7b', (5120, 40): '13b'}  # width, layers of the decoder
_SUPPORTED = {  # fields, and the values that our decoder computes
  'hidden_act': ('silu', 'swish'),  # two names of one function
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
  'partial_rotary_factor': (1.0, None),
}
SIZES = {  # fields that no tensor of an adapter tells, and ours
  'hidden_size': 'width',
  'num_hidden_layers': 'layers',
  'num_attention_heads': 'heads',
  'num_key_value_heads': 'kv_heads',
  'head_dim': 'head_dim',
  'rms_norm_eps': 'eps',
}
_ROPES = ('default',)
_ROPE_THETA = 10000.0  # where no field states it


def size_name(width: int, layers: int) -> str:
  """Returns the size of a decoder: '7b', '13b' or 'custom'."""
  return RELEASED.get((width, layers), 'custom')


def text_section(config: Section) -> Section:
  """Returns the fields of the decoder: a section of their own in the hf layout."""
  text = config.section('text_config')
  if not text.values:
    return config
  text.choice('model_type', ('', 'llama'))
  config_fields.check_architectures(text)
  config_fields.reject_unknown(text, config_fields.DECODER)
  return text


def read_llama(tensors: Tensors, config: Section) -> LlamaConfig:
  """Returns the sizes of the decoder; the defaults where there is no decoder.

  Args:
    tensors: by neutral name.
    config: `text_section` of the checkpoint.
  """
  table = shape_of(tensors, 'model.embed_tokens.weight', 2)
  if table is None:
    return LlamaConfig()
  rope_theta = check_decoder(config) or _ROPE_THETA
  vocab, width = table
  layers_by_width = dict(RELEASED.keys())
  layers = config.integer('num_hidden_layers', layers_by_width.get(width))
  pattern = r'model\.layers\.(\d+)\.'
  names.check_layers(tensors, pattern, layers, 'decoder', config.path)
  # transformers' own default, too; 13b needs another, which its files always state
  heads = config.integer('num_attention_heads', 32 if width == 4096 else None)
  mlp = shape_of(tensors, 'model.layers.0.mlp.gate_proj.weight', 2)
  return LlamaConfig(
    vocab=vocab,
    width=width,
    mlp=mlp[0] if mlp else config.integer('intermediate_size', 11008),
    layers=layers,
    heads=heads,
    kv_heads=config.integer('num_key_value_heads', heads),
    head_dim=config.integer('head_dim', width // heads),
    # transformers' own defaults, where a file leaves them out
    max_positions=config.integer('max_position_embeddings', 2048),
    rope_theta=rope_theta,
    eps=config.positive('rms_norm_eps', 1e-6),
  )


def check_decoder(config: Section) -> float | None:
  """Returns the base of rotary positions; None where no field states it.

  Raises:
    ConvertError: a field asks for another decoder than ours.
  """
  for name, supported in _SUPPORTED.items():
    config.choice(name, supported)
  kinds = config.values.get('layer_types')
  if not config_fields.is_off(kinds) and set(kinds or ()) != {'full_attention'}:
    raise config.error('layer_types', "'full_attention' in every layer")
  return _rope_theta(config)


def _rope_theta(config: Section) -> float | None:
  """Returns the base of rotary positions, which several fields may state.

  Versions of transformers read different ones, so all that are present have to agree.
  """
  stated = {'rope_theta': config} if config.values.get('rope_theta') is not None else {}
  for name in ('rope_scaling', 'rope_parameters'):
    section = config.section(name)
    for kind in ('rope_type', 'type'):
      section.choice(kind, _ROPES)
    if not {'rope_type', 'type'} & section.values.keys():
      section.choice('factor', (None, 1.0))
    section.choice('partial_rotary_factor', (1.0, None))
    config_fields.reject_unknown(section, config_fields.ROPE)
    if section.values.get('rope_theta') is not None:
      stated[f'{name}.rope_theta'] = section
  thetas = {name: x.positive('rope_theta') for name, x in stated.items()}
  theta = next(iter(thetas.values()), None)
  for name, section in stated.items():
    if thetas[name] != theta:
      raise section.error('rope_theta', f'{theta:g} as in {next(iter(thetas))}')
  return theta


def to_llama(
  llama: LlamaConfig, dtype: str, bos: int = 1, eos: int = 2, pad: int = 0
) -> dict[str, Any]:
  """Returns the fields of the decoder in `config.json`.

  Args:
    bos, eos, pad: ids of the tokenizer; the defaults are those of LLaMA.
  """
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
    'bos_token_id': bos,
    'eos_token_id': eos,
    'pad_token_id': pad,
    'torch_dtype': dtype,
  }
