"""PEFT files that become artifacts: heads and projectors."""

import dataclasses

import numpy as np
import pytest

from tests.weights import checkpoints
from tests.weights.damage import edit, on, refused
from vlm_rlaif_jax.weights import (
  tensor_files,
  torch_files,
)

BAD = (
  (lambda v: v.astype(np.int64), 'has dtype int64, expected a floating one'),
  (lambda v: v * np.nan, 'has values that are not finite'),
)


@pytest.mark.parametrize(('change', 'message'), BAD)
@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_values_of_a_head(root, adapter, name, change, message):
  checkpoints.write_head(adapter / 'reward_head')
  tensors = {
    n: t.read() for n, t in tensor_files.read_file(adapter / 'reward_head').items()
  }
  tensors[name] = change(tensors[name])
  torch_files.write(adapter / 'reward_head', tensors)
  refused(adapter, f'reward_head: {name} {message}', request=on(root))


@pytest.mark.parametrize(('change', 'message'), BAD)
def test_values_of_a_projector(root, adapter, change, message):
  path = adapter / 'non_lora_trainables.bin'
  checkpoints.write_projector(path, 'base_model.model.model.')
  edit(path, lambda t: {n: change(v) for n, v in t.items()})
  refused(adapter, f'{path.name}: projector.0', message, request=on(root))


def test_a_projector_twice(root, adapter):
  path = adapter / 'non_lora_trainables.bin'
  checkpoints.write_projector(path, 'base_model.model.model.')
  edit(
    path, lambda t: {**t, **{n.removeprefix('base_model.'): v for n, v in t.items()}}
  )
  refused(adapter, f'{path.name}: two tensors mean projector.0', request=on(root))


@pytest.mark.parametrize('kind', ['reward', 'ppo'])
def test_a_projector_is_not_dropped_for_a_head(root, tmp_path, kind):
  source = tmp_path / 'in'
  inner = {'reward': ('lora_default',), 'ppo': ('lora_policy', 'lora_value')}[kind]
  for name in inner:
    checkpoints.write_adapter(source / 'adapter_model' / name)
  checkpoints.write_head(
    source / {'reward': 'reward_head', 'ppo': 'value_head.pt'}[kind]
  )
  checkpoints.write_projector(
    source / 'non_lora_trainables.bin', 'base_model.model.model.'
  )
  request = dataclasses.replace(on(root), critic=str(root / 'ours'))
  refused(source, 'a projector and a head', request=request)


def test_head_of_another_width(root, adapter):
  checkpoints.write_head(adapter / 'reward_head', 24)
  refused(adapter, 'is for width 24, the decoder has width 16', request=on(root))
