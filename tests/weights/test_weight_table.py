"""Tensors that are missing, unexpected or misshapen."""

import numpy as np
import pytest

from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import (
  VISION,
  _has,
  altered,
  edit,
  refused,
  reindex,
  shards,
  without,
)
from vlm_rlaif_jax.weights import (
  conversion,
  network_files,
)
from vlm_rlaif_jax.weights.conversion import Request


def test_wrong_shape(folder):
  def change(tensors):
    name = next(n for n in tensors if 'q_proj' in n and 'vision' not in n)
    return {**tensors, name: np.zeros((3, 5), np.float32)}

  path = next(f for f in shards(folder) if _has(f, '.0.self_attn.q_proj'))
  edit(path, change)
  refused(
    folder, 'model.layers.0.self_attn.q_proj.weight has shape (3, 5), expected (32, 16)'
  )


def test_wrong_dtype(folder):
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  edit(path, lambda t: {**t, 'model.norm.weight': np.ones(16, np.int64)})
  refused(folder, 'model.norm.weight has dtype int64, expected a floating one')


def test_missing_tensor(folder):
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  edit(path, lambda t: {n: v for n, v in t.items() if n != 'model.norm.weight'})
  refused(folder, path.name, 'model.norm.weight')
  reindex(folder)
  refused(folder, 'missing model.norm.weight (16,)')


def test_extra_tensor(folder):
  path = shards(folder)[0]
  edit(path, lambda t: {**t, 'model.layers.9.extra': np.ones(2, np.float32)})
  reindex(folder)
  refused(folder, 'unexpected model.layers.9.extra (2,)')


@pytest.mark.parametrize(
  'lost',
  ['encoder.layers.2.self_attn.q_proj.weight', 'post_layernorm.weight'],
)
@pytest.mark.parametrize('to', ['ours', 'llava', 'hf'])
def test_what_the_projector_does_not_read_is_absent_only_whole(
  root, tmp_path, lost, to
):
  folder = altered(root / 'llava', tmp_path / 'in', without(VISION + lost))
  refused(folder, f'missing vision.{lost}', request=Request(to=to))


def test_a_tower_without_what_the_projector_does_not_read(root, tmp_path):
  """As LLaVA needs it; transformers would draw the rest at random."""
  folder = altered(
    root / 'llava',
    tmp_path / 'in',
    without('post_layernorm', VISION + 'encoder.layers.2.'),
  )
  refused(folder, 'layers.2.layer_norm1.weight', 'hf layout', request=Request(to='hf'))
  for to in ('ours', 'llava'):
    conversion.convert(folder, tmp_path / to, Request(to=to))
    assert not any(
      'tail' in n or 'post_' in n for n in checkpoints.read_folder(tmp_path / to)
    ) or (to == 'llava')
  cfg = network_files.read_network(tmp_path / 'ours').cfg
  assert cfg.vision == tiny.CFG.vision
  refused(tmp_path / 'ours', 'which the hf layout needs', request=Request(to='hf'))
