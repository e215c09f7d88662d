"""PEFT files that become artifacts: heads and projectors."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.weights import checkpoints
from tests.weights.damage import edit, edit_json, on, refused
from vlm_rlaif_jax.weights import peft_stages, readers, tensor_files, torch_files

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


def test_a_head_of_another_checkpoint_above_is_not_taken(root, tmp_path):
  """As that of an exported reward model, with adapters in folders of its own."""
  checkpoints.write_head(tmp_path / 'reward_head')
  checkpoints.write_adapter(tmp_path / 'runs' / 'policy')
  artifact = import_adapter(tmp_path / 'runs' / 'policy', root)
  assert artifact.info['stage'] == 'init' and 'head' not in artifact.parts
  opened = readers.load_checkpoint(
    tmp_path / 'runs' / 'policy', base=str(root / 'ours')
  )
  assert opened.head is None


@pytest.mark.parametrize('inner', ['lora_default', 'adapter_model/lora_default'])
def test_an_inner_folder_is_the_whole_checkpoint(root, tmp_path, inner):
  """Its head, projector and config.json are in the folder of the checkpoint."""
  reward, sft = tmp_path / 'reward', tmp_path / 'sft'
  for folder in (reward, sft):
    checkpoints.write_adapter(folder / inner)
    shutil.copy(root / 'llava' / 'config.json', folder)
    edit_json(folder / 'config.json', lambda c: {**c, 'image_aspect_ratio': 'square'})
  checkpoints.write_head(reward / 'reward_head')
  projector = checkpoints.write_projector(sft / 'non_lora_trainables.bin', 'model.')
  for folder, stage in ((reward, 'reward'), (sft, 'sft')):
    artifact = import_adapter(folder / inner, root)
    assert artifact.info['stage'] == stage and artifact.info['aspect'] == 'crop'
    opened = readers.load_checkpoint(folder / inner, base=str(root / 'ours'))
    assert opened.aspect == 'crop' and (opened.head is None) == (stage == 'sft')
  weight = opened.network.tensors['projector.0.weight'].read()
  np.testing.assert_array_equal(weight, projector['projector/in/w'])


def import_adapter(folder, root):
  return peft_stages.import_adapter(folder, root / 'ours', '', '', '')
