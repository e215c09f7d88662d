"""PEFT's adapters that are damaged, incomplete or of another kind."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import edit, edit_json, on, refused, without
from vlm_rlaif_jax.settings.models import LINEARS
from vlm_rlaif_jax.weights import peft_files, peft_stages
from vlm_rlaif_jax.weights.conversion import Request


def test_adapter_on_the_wrong_base(root, tmp_path):
  wide = dataclasses.replace(
    tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, width=24, layers=3)
  )
  checkpoints.write_adapter(tmp_path / 'adapter', wide)
  refused(
    tmp_path / 'adapter',
    '3 layers and width 24',
    '2 layers and width 16',
    request=on(root),
  )


def test_a_value_adapter_alone(root, tmp_path):
  checkpoints.write_adapter(tmp_path / 'lora_value')
  refused(tmp_path, 'has lora_value and no lora_policy', request=on(root))


def test_adapter_without_a_base(adapter):
  refused(adapter, '--base')
  refused(adapter, "its config names 'elsewhere'", request=Request(to='llava'))


def test_adapter_with_a_hole(root, adapter):
  path = adapter / 'adapter_model.safetensors'
  lost = 'base_model.model.model.layers.1.mlp.up_proj.lora_B.weight'
  edit(path, lambda t: {n: v for n, v in t.items() if n != lost})
  refused(adapter, f'missing {lost}', request=on(root))


def test_adapter_with_something_else(root, adapter):
  path = adapter / 'adapter_model.safetensors'
  name = 'base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight'
  edit(path, lambda t: {**t, name: np.ones((4, 16), np.float32)})
  refused(adapter, f'unexpected {name}', request=on(root))


@pytest.mark.parametrize(
  ('field', 'value'),
  [('use_dora', True), ('bias', 'all'), ('peft_type', 'IA3'), ('r', 5)],
)
def test_adapter_of_another_kind(root, adapter, field, value):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, field: value})
  expected = 'expected rank 5' if field == 'r' else field
  refused(adapter, expected, request=on(root))


Q = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'

AGAIN = Q.replace('lora_A.', 'lora_A.default.')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: {**t, Q: t[Q].astype(np.int64)}, 'q_proj.lora_A.weight has dtype int64'),
    (
      lambda t: {n: v.astype(np.int32) for n, v in t.items()},
      'expected a floating one',
    ),
    (lambda t: {n: v.astype(bool) for n, v in t.items()}, 'expected a floating one'),
    (lambda t: {**t, Q: t[Q].astype(np.float16)}, 'layer 0 has float16'),
    (lambda t: {**t, Q: t[Q] * np.nan}, f'{Q} has values that are not finite'),
    (lambda t: {**t, Q: t[Q] + np.inf}, f'{Q} has values that are not finite'),
    (lambda t: {**t, AGAIN: 2 * t[Q]}, f'two tensors mean {Q}'),
    (
      without('q_proj'),
      'missing the adapter of self_attn.q_proj, which target_modules',
    ),
    (
      without('lora_B'),
      'missing base_model.model.model.layers.0.self_attn.q_proj.lora_B',
    ),
    (lambda t: {}, 'contains no adapter of the decoder'),
  ],
)
@pytest.mark.parametrize('merge', [False, True])
def test_tensors_of_an_adapter(root, adapter, change, message, merge):
  edit(adapter / 'adapter_model.safetensors', change)
  request = dataclasses.replace(on(root), merge=merge, to='ours')
  refused(adapter, message, request=request)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('lora_alpha', value) for value in (None, 'x', float('nan'), 0, True)),
    *(('lora_dropout', value) for value in ('x', 1.0, -0.1, float('nan'))),
    *(('r', value) for value in (None, 'x', 4.0, 0, True)),
    *(('target_modules', value) for value in (3, '(')),
  ],
)
def test_config_of_an_adapter(root, adapter, field, value):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, field: value})
  refused(
    adapter, f'adapter_config.json: {field} is {value!r}, expected ', request=on(root)
  )


@pytest.mark.parametrize(
  'fields',
  [
    {'rank_pattern': None, 'alpha_pattern': None, 'lora_dropout': None},
    {'rank_pattern': {}, 'use_dora': False, 'layer_replication': None},
    {'target_modules': None},
    {'target_modules': 'all-linear'},
    {
      'target_modules': [*(f'{n}_proj' for n in LINEARS[1:]), 'self_attn.q_proj', 'fc1']
    },
    {'target_modules': r'.*language_model.*_proj', 'exclude_modules': ['fc1']},
    {'target_modules': 'all-linear', 'layers_to_transform': [1, 0]},
  ],
)
def test_what_an_adapter_may_leave_open(adapter, fields):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, **fields})
  assert peft_files.read(adapter).lora.targets == LINEARS


@pytest.mark.parametrize(
  ('targets', 'present'),
  [
    ('all-linear', LINEARS[1:]),
    (['q_proj', 'v_proj'], 'v'),
    (r'.*\.(q|k)_proj', 'k'),
    (['self_attn.q_proj', 'o_proj'], 'o'),
  ],
)
def test_a_target_without_its_adapter(root, adapter, targets, present):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, 'target_modules': targets})
  absent = [f'{n}_proj' for n in LINEARS if n not in present]
  edit(adapter / 'adapter_model.safetensors', without(*absent))
  refused(adapter, 'missing the adapter of self_attn.q_proj', request=on(root))
  edit_json(
    adapter / 'adapter_config.json', lambda c: {**c, 'exclude_modules': ['q_proj']}
  )
  assert 'q' not in peft_files.read(adapter).lora.targets


@pytest.mark.parametrize(
  'fields',
  [
    {'target_modules': ['q_proj', 'v_proj']},
    {'target_modules': 'all-linear', 'exclude_modules': ['k_proj']},
    {'target_modules': 'all-linear', 'layers_to_transform': [0]},
    {'target_modules': 'all-linear', 'layers_to_transform': 0},
  ],
)
def test_an_adapter_that_its_config_leaves_out(root, adapter, fields):
  """PEFT would load the rest alone."""
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, **fields})
  layer = 1 if 'layers_to_transform' in fields else 0
  name = f'base_model.model.model.layers.{layer}.'
  refused(adapter, f'unexpected {name}', 'leave out', request=on(root))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('init_lora_weights', v) for v in ('pissa', 'pissa_niter_16', 'olora', 'loftq')),
    *(('init_lora_weights', value) for value in ('corda', 'lora_ga', 'of next year')),
    ('alora_invocation_tokens', [523, 28766]),
    ('trainable_token_indices', [3]),
    ('target_parameters', ['mlp.experts']),
    ('rank_pattern', {'q_proj': 8}),
    ('alpha_pattern', {'q_proj': 8}),
    ('modules_to_save', ['lm_head']),
    ('fan_in_fan_out', True),
    ('lora_bias', True),
    ('layer_replication', [[0, 2]]),
    ('use_qalora', True),
    ('arrow_config', {'top_k': 3}),
    ('a_field_of_next_year', 0.5),
  ],
)
def test_a_field_that_changes_what_an_adapter_means(root, adapter, field, value):
  """PiSSA and its kind subtract from the base what their adapter starts with."""
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, field: value})
  refused(adapter, f'adapter_config.json: {field} is ', request=on(root))


HARMLESS = {
  'init_lora_weights': True, 'alora_invocation_tokens': None, 'use_qalora': False,
  'qalora_group_size': 16, 'trainable_token_indices': None, 'target_parameters': None,
  'loftq_config': {}, 'corda_config': None, 'eva_config': {'rho': 2.0},
  'arrow_config': None, 'lora_bias': False, 'ensure_weight_tying': False,
  'megatron_core': 'megatron.core', 'peft_version': '9.9', 'revision': 'main',
  'inference_mode': True, 'auto_mapping': None, 'a_field_of_next_year': {'on': False},
  'layers_pattern': None, 'task_type': 'CAUSAL_LM',
}  # fmt: skip


@pytest.mark.parametrize('start', [True, False, None, 'gaussian', 'eva', 'orthogonal'])
def test_fields_that_change_nothing(adapter, start):
  """Those that PEFT writes by default, and starts that leave the base as it is."""
  before = peft_files.read(adapter)
  fields = HARMLESS | {'init_lora_weights': start}
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, **fields})
  after = peft_files.read(adapter)
  assert after.lora == before.lora
  for name, value in before.flat.items():
    np.testing.assert_array_equal(after.flat[name], value)


def test_rank_stabilized_scaling_is_computed(adapter):
  """alpha / sqrt(rank) there is alpha sqrt(rank) / rank here."""
  before = peft_files.read(adapter).lora
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, 'use_rslora': True})
  after = peft_files.read(adapter).lora
  scale = before.alpha / before.rank**0.5
  assert after.alpha / after.rank == pytest.approx(scale)


def test_a_config_beside_an_adapter_is_of_the_same_network(root, adapter):
  """LLaVA takes the fields of pictures from there, and not from the base."""
  config = adapter / 'config.json'
  shutil.copy(root / 'llava' / 'config.json', config)
  peft_stages.import_adapter(adapter, root / 'ours', '', '', '')
  for field, value in (
    ('mm_use_im_start_end', True),
    ('mm_vision_select_layer', -1),
    ('mm_vision_select_feature', 'cls_patch'),
    ('mm_projector_type', 'mlp2x_relu'),
    ('rms_norm_eps', 0.5),
    ('rope_theta', 500.0),
    ('rope_parameters', {'rope_theta': 500.0}),
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}),
    ('num_key_value_heads', 1),
    ('hidden_act', 'gelu'),
    ('text_config', {'rms_norm_eps': 0.5}),
  ):
    edit_json(config, lambda c, field=field, value=value: {**c, field: value})
    inner = next(iter(value)) if isinstance(value, dict) else ''
    name, last = (f'{field}.{inner}', value[inner]) if inner else (field, value)
    refused(adapter, f'config.json: {name} is {last!r}', request=on(root))
    shutil.copy(root / 'llava' / 'config.json', config)
