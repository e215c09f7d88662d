"""JSON that cannot be read, and fields that are null."""

import dataclasses
import shutil

import pytest

from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import altered, refused
from vlm_rlaif_jax.weights import (
  json_section,
  network_files,
)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors.index.json'])
def test_json_that_is_nested_too_deep(root, tmp_path, name):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (folder / name).write_text('{"a":' * 100_000)
  refused(folder, f'{name}: not JSON')


@pytest.mark.parametrize('field', json_section.NULLABLE)
def test_null_may_stand_for_nothing(root, tmp_path, field):
  def nothing(config):
    assert config.get(field) is None or field != 'rope_scaling'
    return {**config, field: None}

  wide = dataclasses.replace(
    tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, kv_heads=4, head_dim=4)
  )
  checkpoints.write_foreign(
    tmp_path / 'in', checkpoints.write_base(tmp_path / 'ours', cfg=wide), 'llava'
  )
  folder = altered(tmp_path / 'in', tmp_path / 'null', config=nothing)
  if field == 'vision_config':
    refused(folder, 'vision_config.num_hidden_layers is missing')
  else:
    assert network_files.read_network(folder).cfg.llama == wide.llama
