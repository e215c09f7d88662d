"""The tower that an export in LLaVA's layout names is the one that it has."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests.weights import checkpoints
from tests.weights.damage import altered
from vlm_rlaif_jax.settings.models import ClipVisionConfig, VlmConfig
from vlm_rlaif_jax.weights import conversion, network_files, tower_files
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.conversion import Request

LARGE = ClipVisionConfig()  # CLIP's ViT-L/14 at 336 pixels


@pytest.mark.parametrize(
  ('change', 'name'),
  [
    ({}, 'openai/clip-vit-large-patch14-336'),
    ({'image_size': 224}, 'openai/clip-vit-large-patch14'),
    ({'image_size': 448}, ''),
    ({'width': 512}, ''),
    ({'layers': 23}, ''),
  ],
)
def test_names_of_released_towers(change, name):
  assert tower_files.released_name(dataclasses.replace(LARGE, **change)) == name


def test_a_tower_of_its_own_has_no_name(tmp_path):
  """Though it has the sizes of one that has; bases of `pretrain` record that."""
  network = Checkpoint(tmp_path, VlmConfig(vision=LARGE), {})
  named = tower_files.name_or_place(network, tmp_path / 'out')
  assert named == 'openai/clip-vit-large-patch14-336'
  own = dataclasses.replace(network, own_tower=True)
  place = str(tmp_path / 'out' / 'vision_tower')
  assert tower_files.name_or_place(own, tmp_path / 'out') == place


def test_whether_a_tower_is_of_its_own_survives_conversions(root, tmp_path):
  tuned = lambda c: {**c, 'unfreeze_mm_vision_tower': True}
  folder = altered(root / 'llava', tmp_path / 'in', config=tuned)
  conversion.convert(folder, tmp_path / 'base', Request())
  assert network_files.read_network(tmp_path / 'base').own_tower
  assert not network_files.read_network(root / 'llava').own_tower


def test_another_tower_is_a_folder(root, tmp_path):
  """Whole, with the last layers and the norm that LLaVA does not read."""
  conversion.convert(root / 'ours', tmp_path / 'out', Request(to='llava'))
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  place = pathlib.Path(config['mm_vision_tower'])
  assert place == tmp_path / 'out' / 'vision_tower'
  clip, tensors = network_files._read_clip(place)
  assert clip.values['model_type'] == 'clip_vision_model'
  ours = network_files.read_network(tmp_path / 'out').tensors
  names = {name for name in ours if name.startswith('vision.')}
  assert tensors.keys() == names
  for name in names:
    np.testing.assert_array_equal(tensors[name].read(), ours[name].read(), name)
  assert 'vision.post_layernorm.weight' in names


@pytest.mark.slow
def test_the_folder_is_one_of_transformers(root):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model, notes = transformers.CLIPVisionModel.from_pretrained(
    root / 'llava' / 'vision_tower', output_loading_info=True, dtype=torch.float32
  )
  assert not notes['missing_keys'] and not notes['unexpected_keys']
  state = {name: x.numpy() for name, x in model.state_dict().items()}
  (q,) = (x for name, x in state.items() if name.endswith('0.self_attn.q_proj.weight'))
  np.testing.assert_array_equal(q, checkpoints.random_weights()['tower/layers/q/w'][0])
