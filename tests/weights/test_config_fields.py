"""Fields of config.json that several names have, or that a file leaves out."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.weights import checkpoints
from tests.weights.damage import altered, edit_json, refused
from vlm_rlaif_jax.weights import clip_config, conversion, network_files
from vlm_rlaif_jax.weights.json_section import Section
from vlm_rlaif_jax.weights.tensors import ArrayTensor


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rope_scaling': {'factor': 4.0}}, 'rope_scaling.factor is 4.0'),
    (
      {'rope_scaling': {'type': 'linear', 'rope_type': 'default', 'factor': 4.0}},
      "rope_scaling.type is 'linear', expected 'default'",
    ),
    (
      {'rope_scaling': {'rope_type': 'default', 'rope_theta': 777.0}},
      'rope_scaling.rope_theta is 777.0, expected 10000 as in rope_theta',
    ),
    (
      {'rope_parameters': {'rope_theta': 777.0}},
      'rope_parameters.rope_theta is 777.0, expected 10000 as in rope_theta',
    ),
    (
      {'projector_hidden_act': 'relu'},
      "projector_hidden_act is 'relu', expected that of mm_projector_type",
    ),
  ],
)
def test_two_fields_that_disagree(root, tmp_path, fields, message):
  """Versions of transformers read either of them."""
  folder = altered(root / 'llava', tmp_path / 'in', config=lambda c: {**c, **fields})
  refused(folder, f'config.json: {message}')


@pytest.mark.parametrize('section', ['rope_scaling', 'rope_parameters'])
def test_the_rotary_base_may_be_in_a_section(root, tmp_path, section):
  theta = {'rope_type': 'default', 'rope_theta': 777.0}
  change = lambda c: {**c, 'rope_theta': None, section: theta}
  folder = altered(root / 'llava', tmp_path / 'in', config=change)
  assert network_files.read_network(folder).cfg.llama.rope_theta == 777


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('mm_vision_select_layer', -1),
    ('mm_vision_select_feature', 'cls_patch'),
    ('mm_projector_type', 'mlp2x_relu'),
    ('mm_use_im_start_end', True),
    ('rms_norm_eps', 0.5),
  ],
)
def test_a_config_beside_a_projector_is_of_the_same_network(
  root, tmp_path, field, value
):
  """LLaVA writes it there; Vicuna's own says nothing of pictures."""
  projector = tmp_path / 'projector' / 'mm_projector.bin'
  projector.parent.mkdir()
  checkpoints.write_projector(projector, 'model.')
  shutil.copy(root / 'llava' / 'config.json', projector.parent)
  request = conversion.Request(projector=str(projector))
  for source in ('ours', 'llava'):
    conversion.convert(root / source, tmp_path / f'{source}-base', request)
  edit_json(projector.parent / 'config.json', lambda c: {**c, field: value})
  source = shutil.copytree(root / 'llava', tmp_path / 'llava')
  message = f'projector/config.json: {field} is {value!r}, expected '
  refused(source, message, request=request)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('scale', [1, 0.5])
def test_rotary_frequencies_in_a_file(root, tmp_path, dtype, scale):
  """Those of scaled positions are another network, whatever config.json says."""
  size = checkpoints.CFG.llama.head_dim
  frequencies = scale * 10000.0 ** -(np.arange(0, size, 2) / size)
  name = 'model.layers.1.self_attn.rotary_emb.inv_freq'
  tensors = lambda t: {**t, name: frequencies.astype(dtype)}
  folder = altered(root / 'llava', tmp_path / 'in', tensors)
  if scale == 1:
    assert name not in network_files.read_network(folder).tensors
  else:
    refused(folder, f'{name} starts with [0.5, 0.05, ', 'of rope_theta 10000')


def test_what_a_config_leaves_out_is_the_default_of_transformers(tmp_path):
  """Its files have no field of a section that has the default of its class."""
  transformers = pytest.importorskip('transformers')
  cfg = dataclasses.replace(
    checkpoints.CFG,
    vision=dataclasses.replace(checkpoints.CFG.vision, width=192, heads=12),
    text=dataclasses.replace(checkpoints.CFG.text, width=64, heads=8),
  )
  text = transformers.CLIPTextConfig()
  vision, llama = transformers.CLIPVisionConfig(), transformers.LlamaConfig()
  checkpoints.write_base(tmp_path / 'ours', cfg=cfg)
  checkpoints.write_foreign(tmp_path / 'hf', tmp_path / 'ours', 'hf')
  names = {
    'vision_config': ('num_attention_heads', 'layer_norm_eps'),
    'text_config': ('max_position_embeddings', 'rms_norm_eps', 'rope_theta'),
  }

  def leave_out(config):
    sections = {
      section: {k: v for k, v in config[section].items() if k not in left_out}
      for section, left_out in names.items()
    }
    return {**config, **sections}

  folder = altered(tmp_path / 'hf', tmp_path / 'in', config=leave_out)
  read = network_files.read_network(folder).cfg
  assert read.vision.heads == vision.num_attention_heads == 12
  assert read.vision.eps == vision.layer_norm_eps
  assert read.llama.max_positions == llama.max_position_embeddings
  assert read.llama.eps == llama.rms_norm_eps
  assert read.llama.rope_theta == llama.rope_parameters['rope_theta']
  tensors = {
    'text.embeddings.token_embedding.weight': ArrayTensor(np.zeros((9, 64))),
    'text.embeddings.position_embedding.weight': ArrayTensor(np.zeros((5, 64))),
    **{f'text.encoder.layers.{i}.x': ArrayTensor(np.zeros(1)) for i in range(12)},
  }
  read = clip_config.read_text(tensors, Section({'model_type': 'clip_text_model'}))
  assert (read.heads, read.layers) == (text.num_attention_heads, text.num_hidden_layers)
