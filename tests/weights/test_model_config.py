"""Sizes of networks from config.json and model.json."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import VISION, altered, edit_json, refused, without
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.models import LlamaConfig, VlmConfig
from vlm_rlaif_jax.train import run_context
from vlm_rlaif_jax.weights import (
  bases,
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


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('mm_use_im_start_end', True),
    *(('mm_patch_merge_type', value) for value in ('spatial', 'spatial_unpad')),
    *(('image_aspect_ratio', value) for value in ('anyres', 'anyres_max_9', 'highres')),
    ('architectures', ['LlavaMistralForCausalLM']),
    ('partial_rotary_factor', 0.5),
    ('layer_types', ['full_attention', 'sliding_attention']),
    ('use_mm_proj', False),
    ('mm_resampler_type', 'spatial_pool'),
    ('s2', True),
    ('final_logit_softcapping', 30.0),
    ('auto_map', {'AutoModel': 'modeling.Model'}),
    ('a_field_of_next_year', 3),
  ],
)
def test_a_field_that_asks_for_another_network(root, tmp_path, field, value):
  folder = altered(
    root / 'llava', tmp_path / 'in', config=lambda c: {**c, field: value}
  )
  refused(folder, f'config.json: {field} is ')


@pytest.mark.parametrize('section', ['text_config', 'vision_config'])
def test_a_field_of_a_section_that_asks_for_another_network(root, tmp_path, section):
  folder = altered(
    root / 'hf',
    tmp_path / 'in',
    config=lambda c: {**c, section: {**c[section], 'a_field_of_next_year': 3}},
  )
  refused(folder, f'config.json: {section}.a_field_of_next_year is 3')


HARMLESS = {
  'mm_use_im_start_end': False, 'mm_use_im_patch_token': False, 'use_mm_proj': True,
  'mm_patch_merge_type': 'flat', 'image_aspect_ratio': 'pad', 'bad_words_ids': None,
  'image_grid_pinpoints': [[336, 672]], 'image_crop_resolution': 224,
  'mm_resampler_type': None, 'tune_mm_mlp_adapter': True, 'sliding_window': None,
  'unfreeze_mm_vision_tower': True, 'rope_scaling': None, 'attention_bias': False,
  'mlp_bias': False, 'pretraining_tp': 2, 'hidden_act': 'swish', 'temperature': 0.9,
  'layer_types': ['full_attention'] * 2, 'a_field_of_next_year': False,
  'quantization_config': None, 'tie_word_embeddings': False,
}  # fmt: skip


def test_fields_that_ask_for_nothing(root, tmp_path):
  plain = network_files.read_network(root / 'llava')
  folder = altered(root / 'llava', tmp_path / 'in', config=lambda c: {**c, **HARMLESS})
  assert network_files.read_network(folder).cfg == plain.cfg


def test_a_square_is_cropped(root, tmp_path):
  """LLaVA's 'square' is the center of CLIP's own processor; exports keep it."""
  square = lambda c: {**c, 'image_aspect_ratio': 'square'}
  folder = altered(root / 'llava', tmp_path / 'in', config=square)
  assert network_files.read_network(folder).aspect == 'crop'
  assert network_files.read_network(root / 'llava').aspect == 'pad'
  conversion.convert(folder, tmp_path / 'out', Request(to='llava'))
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['image_aspect_ratio'] == 'square'


def test_a_head_that_is_said_to_be_the_table_has_to_be(root, tmp_path):
  tied = lambda c: {**c, 'tie_word_embeddings': True}
  folder = altered(root / 'llava', tmp_path / 'in', config=tied)
  refused(folder, 'tie_word_embeddings is True, expected False: lm_head.weight and')
  same = lambda t: {**t, 'lm_head.weight': t['model.embed_tokens.weight']}
  folder = altered(root / 'llava', tmp_path / 'same', same, tied)
  absent = altered(root / 'llava', tmp_path / 'absent', without('lm_head'), tied)
  heads = [network_files.read_network(x).tensors['lm_head.weight'] for x in
           (folder, absent)]  # fmt: skip
  np.testing.assert_array_equal(*(head.read() for head in heads))


def test_a_base_with_a_second_file_of_its_weights_is_refused(root, tmp_path):
  folder = shutil.copytree(root / 'ours', tmp_path / 'base')
  shutil.copy(folder / 'model.safetensors', folder / 'model (1).safetensors')
  with pytest.raises(UserError, match=r'model\.safetensors: repeats llama/'):
    bases.load(str(folder), tiny.CFG)
  with pytest.raises(ConvertError, match=r'model\.safetensors: repeats llama/'):
    network_files.read_network(folder)


def test_a_base_keeps_how_frames_became_squares(root, tmp_path):
  """And a run that makes other squares of them is refused."""
  square = lambda c: {**c, 'image_aspect_ratio': 'square'}
  folder = altered(root / 'llava', tmp_path / 'in', config=square)
  conversion.convert(folder, tmp_path / 'base', Request())
  checkpoints.write_tokenizer(tmp_path / 'base', tiny.CFG.llama.vocab)
  base = bases.load(str(tmp_path / 'base'), tiny.CFG)
  assert base.aspect == network_files.read_network(tmp_path / 'base').aspect == 'crop'
  run_context.check_aspect(base, str(tmp_path / 'base'), 'crop')
  with pytest.raises(UserError, match=r"aspect is 'pad'; .*use --config"):
    run_context.check_aspect(base, str(tmp_path / 'base'), 'pad')
  unknown = bases.load(str(root / 'ours'), tiny.CFG)
  assert not unknown.aspect
  run_context.check_aspect(unknown, '', 'crop')


def test_a_local_vision_tower_is_followed(root, tmp_path):
  """As LLaVA follows `mm_vision_tower`; one that was trained must be inside."""
  exported = json.loads((root / 'llava' / 'config.json').read_text())
  tower = pathlib.Path(exported['mm_vision_tower'])
  assert tower == root / 'llava' / 'vision_tower'
  folder = altered(root / 'llava', tmp_path / 'in', without('vision_tower'))
  found = network_files.read_network(folder)
  assert found.clip == tower
  for name, tensor in network_files.read_network(root / 'llava').tensors.items():
    np.testing.assert_array_equal(found.tensors[name].read(), tensor.read(), name)
  shutil.copytree(tower, folder / 'mine')
  edit_json(folder / 'config.json', lambda c: {**c, 'mm_vision_tower': 'mine'})
  assert network_files.read_network(folder).clip == folder / 'mine'
  edit_json(folder / 'config.json', lambda c: {**c, 'unfreeze_mm_vision_tower': True})
  refused(
    folder, 'unfreeze_mm_vision_tower is True, expected a tower among its tensors'
  )


@pytest.mark.parametrize(
  ('field', 'value'),
  [('image_mean', [0.5, 0.5, 0.5]), ('do_normalize', False), ('resample', 2)],
)
def test_a_tower_that_reads_other_pixels(root, tmp_path, field, value):
  folder = altered(root / 'llava', tmp_path / 'in')
  shutil.copy(root / 'hf' / 'preprocessor_config.json', folder)
  network_files.read_network(folder)
  edit_json(folder / 'preprocessor_config.json', lambda c: {**c, field: value})
  refused(folder, f'preprocessor_config.json: {field} is ')
