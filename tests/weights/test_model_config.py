"""Sizes of networks from config.json and model.json."""

import json
import re
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.weights.damage import VISION, altered, edit_json, refused, without
from vlm_rlaif_jax.settings.models import LlamaConfig, VlmConfig
from vlm_rlaif_jax.weights import (
  clip_config,
  conversion,
  json_section,
  llama_config,
  model_config,
  names,
  network_files,
  tensor_files,
  weight_table,
)
from vlm_rlaif_jax.weights.conversion import Request
from vlm_rlaif_jax.weights.errors import ConvertError


def test_unreadable_json(folder):
  (folder / 'config.json').write_text('{"hidden_size": ')
  refused(folder, 'config.json: not JSON')


def test_another_kind_of_network(folder):
  edit_json(
    folder / 'config.json', lambda c: {**c, 'rope_scaling': {'rope_type': 'linear'}}
  )
  refused(folder, "rope_scaling.rope_type is 'linear', expected 'default'")


@pytest.mark.parametrize(
  ('lost', 'message'),
  [
    ((), None),
    (('layers.23.',), None),
    (('layers.23.', 'post_layernorm'), None),
    (('layers.22.', 'layers.23.'), 'expected 24 layers of the tower'),
    (('layers.22.',), 'missing vision.encoder.layers.22.'),
    (('layers.23.mlp.fc1.bias',), 'missing vision.encoder.layers.23.mlp.fc1.bias'),
    (('post_layernorm.bias',), 'missing vision.post_layernorm.bias (1024,)'),
  ],
)
def test_the_released_tower_has_the_layers_of_clip(tmp_path, lost, message):
  """Their config says nothing of the tower; counting layers would move its features."""
  llama = LlamaConfig(
    vocab=8, width=8, mlp=8, layers=1, heads=1, kv_heads=1, head_dim=8
  )
  cfg = VlmConfig(llama=llama)
  shapes = {
    names.llava_name(source): (leaf.foreign_shape, np.dtype(np.float16))
    for leaf in weight_table.weights(cfg)
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
    for source in leaf.sources
    if not any(f'vision.encoder.{x}' in source or f'vision.{x}' in source for x in lost)
  }
  tensor_files.ShardWriter(tmp_path, shapes)  # sparse: nothing is put in
  config = {'model_type': 'llava', **llama_config.to_llama(cfg.llama, 'float16')}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  if message is None:
    found = network_files.read_network(tmp_path)
    assert found.cfg.vision == cfg.vision
    assert ('tower/tail/q/w' in {leaf.name for leaf in found.weights()}) == (not lost)
    return
  with pytest.raises(ConvertError, match=re.escape(message)):
    network_files.read_network(tmp_path).weights()


def test_a_tower_of_no_known_size_needs_its_config(root, tmp_path):
  """And takes it from the CLIP that is given beside it."""
  less = lambda c: {n: v for n, v in c.items() if n != 'vision_config'}
  folder = altered(root / 'llava', tmp_path / 'in', config=less)
  refused(
    folder,
    'vision_config.num_hidden_layers is missing, expected that of a tower of width 16 '
    'and patch 8; give --vision',
  )
  clip = tmp_path / 'clip'
  clip.mkdir()
  shutil.copy(folder / 'model.safetensors', clip)
  (clip / 'config.json').write_text(json.dumps(clip_config.to_vision(tiny.CFG)))
  conversion.convert(folder, tmp_path / 'out', Request(vision=str(clip)))
  cut = altered(
    root / 'llava',
    tmp_path / 'cut',
    without('layers.2.', VISION + 'encoder.layers.1.'),
    less,
  )
  with pytest.raises(ConvertError, match='expected 3 layers of the tower'):
    sizes_of(cut, clip_config=clip_config.to_vision(tiny.CFG))


def sizes_of(folder, clip_config):
  tensors = names.to_neutral(tensor_files.read_file(folder / 'model.safetensors'))
  config = json_section.read_json(folder / 'config.json')
  return model_config.read_config_json(
    tensors, json_section.Section(config), json_section.Section(clip_config), 'float32'
  )


def test_a_decoder_needs_the_number_of_its_layers(root, tmp_path):
  less = lambda c: {n: v for n, v in c.items() if n != 'num_hidden_layers'}
  cut = without('model.layers.1.')
  refused(
    altered(root / 'llava', tmp_path / 'a', cut, less),
    'config.json: num_hidden_layers is missing, expected an integer >= 1',
  )
  refused(
    altered(root / 'llava', tmp_path / 'b', cut),
    'expected 2 layers of the decoder (num_hidden_layers), found 1',
  )


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('num_hidden_layers', value) for value in ('2', 2.0, 0, -1, None, True)),
    *(('num_attention_heads', value) for value in ('4', 0, -4, None)),
    *(('rms_norm_eps', value) for value in ('x', None, 0, float('nan'), True)),
    *(('max_position_embeddings', value) for value in ('q', None, 0)),
    *(('text_config', value) for value in ([1], 'abc')),
    ('vision_config', 3),
    *(('model_type', value) for value in ('mistral', 'qwen2', 'llava_next', None, 3)),
    ('sliding_window', 16),
    ('attention_bias', True),
    ('mlp_bias', True),
    *(('mm_vision_select_layer', value) for value in ('x', 1, -4, [-2, -3])),
    ('mm_vision_select_feature', 'cls_patch'),
    *(('mm_projector_type', value) for value in ('linear', ['a'])),
    *(('rope_scaling', value) for value in ('x', [1])),
    ('rope_theta', 'x'),
    ('head_dim', 'x'),
    ('hidden_act', 'gelu'),
  ],
)
def test_a_config_that_says_something_else(root, tmp_path, field, value):
  folder = altered(
    root / 'llava', tmp_path / 'in', config=lambda c: {**c, field: value}
  )
  refused(folder, f'config.json: {field} is {value!r}, expected ')


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vision_feature_select_strategy', 'full'),
    *(('image_token_index', value) for value in ('x', 10, 62, 0, -200)),
    ('vision_feature_layer', [-2, -3]),
    ('projector_hidden_act', 'silu'),
  ],
)
def test_a_config_of_the_other_layout(root, tmp_path, field, value):
  folder = altered(root / 'hf', tmp_path / 'in', config=lambda c: {**c, field: value})
  refused(folder, f'config.json: {field} is {value!r}, expected ')


@pytest.mark.parametrize('section', ['text_config', 'vision_config'])
def test_a_part_of_another_kind(root, tmp_path, section):
  folder = altered(
    root / 'hf',
    tmp_path / 'in',
    config=lambda c: {**c, section: {**c[section], 'model_type': 'siglip'}},
  )
  refused(folder, f"config.json: {section}.model_type is 'siglip', expected ")


@pytest.mark.parametrize(
  'text', ['{"llama": 3, "llama.width": 4}', '{"llama.kv_heads": 0}', '{"llama": 3}']
)
def test_sizes_of_ours_that_are_none(root, tmp_path, text):
  folder = shutil.copytree(root / 'ours', tmp_path / 'broken')
  (folder / 'model.json').write_text(text)
  refused(folder, 'broken')
