"""Where a text tower comes from: the package, a converted base, a folder of CLIP."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from configs import models
from tests import clip_tokenizer
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.stage import RANDOM
from vlm_rlaif_jax.weights import bases, text_towers


def test_the_base_of_the_package_has_one_with_its_own_tokenizer():
  tower = text_towers.load('', '', models.tiny())
  assert tower.cfg == models.tiny().text and tower.joint == models.tiny().joint
  assert 'logit_scale' not in tower.params
  stored = safetensors.numpy.load_file(bases.TINY / 'model.safetensors')
  np.testing.assert_array_equal(tower.params['tokens']['w'], stored['text/tokens/w'])
  assert tower.params['layers']['q']['w'].dtype == np.float32
  ((ids,),) = tower.tokenizer.windows('The red circle stays.', tower.cfg.context)
  assert ids[-1] == tower.cfg.eos_id == 2 and 2 not in ids[:-1]


def test_naming_the_folder_of_a_base_is_the_same(tmp_path):
  copy = tmp_path / 'base'
  shutil.copytree(bases.TINY, copy)
  cfg = models.tiny()
  tower = text_towers.load(str(copy), 'another base', cfg)
  assert tower.fingerprint == text_towers.load('', '', cfg).fingerprint


def test_a_converted_base_has_clips_tokenizer_in_a_folder_of_its_own(tmp_path):
  copy = tmp_path / 'base'
  shutil.copytree(bases.TINY, copy)
  (copy / 'text').mkdir()
  size = len(clip_tokenizer.write(copy / 'text').get_vocab())
  cfg = models.tiny()
  with pytest.raises(UserError, match=r'base/text: its tokenizer has .* the end 2'):
    text_towers.load('', str(copy), cfg)  # its tower ends texts with another id
  sizes = json.loads((copy / 'model.json').read_text()) | {'text.eos_id': size - 1}
  (copy / 'model.json').write_text(json.dumps(sizes))
  ((ids,),) = text_towers.load('', str(copy), cfg).tokenizer.windows('the', 64)
  assert (ids[0], ids[-1]) == (size - 2, size - 1) and len(ids) == 3


def test_random_weights_have_the_shapes_of_the_network():
  cfg = models.tiny()
  shapes = text_towers.load('', RANDOM, cfg).params
  expected = text_towers.load('', '', cfg).params
  assert shapes.keys() == expected.keys()
  assert shapes['layers']['up']['w'].shape == expected['layers']['up']['w'].shape
  assert np.std(shapes['tokens']['w']) > 0


def test_a_base_without_one_says_what_to_name(tmp_path):
  stored = safetensors.numpy.load_file(bases.TINY / 'model.safetensors')
  stored = {name: w for name, w in stored.items() if not name.startswith('text/')}
  safetensors.numpy.save_file(stored, tmp_path / 'model.safetensors')
  shutil.copy(bases.TINY / 'model.json', tmp_path)
  with pytest.raises(UserError) as error:
    text_towers.load('', str(tmp_path), models.tiny())
  assert str(error.value).startswith(f'{tmp_path}: has no text tower')
  assert '--config.text_scores.text_encoder' in str(error.value)


def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r'nowhere: no such folder'):
    text_towers.load(str(tmp_path / 'nowhere'), '', models.tiny())
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'clip'}))
  with pytest.raises(UserError, match=r'no model\.safetensors'):
    text_towers.load(str(tmp_path), '', models.tiny())
