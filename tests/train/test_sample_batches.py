"""Shapes of batches, which are compiled before any data are read."""

import functools

import jax
import numpy as np
import pytest

from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.batches import BLANK, Step
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.train import pairwise, sample_batches

STEP = Step((5, 32), np.full(8, BLANK))


@pytest.mark.parametrize('kind', ['patches', 'tokens', 'pairs'])
def test_the_shapes_of_a_batch_are_known_without_data(tmp_path, kind):
  mesh = sharding.make_mesh(MeshConfig(data=2), jax.devices()[:2])
  data = DataConfig(root=str(tmp_path), frames=5)
  weights = {'tower': 'w', 'projector': 'p'}
  features = VisualFeatures(Vlm(CFG), dict, weights, data, tmp_path, mesh)
  if kind == 'pairs':
    build = functools.partial(pairwise.planned_pair_batch, [], features)
    shapes = pairwise.pair_shapes(features, STEP)
  else:
    build = sample_batches.SampleBatches([], features, kind)
    shapes = build.shapes(STEP)
  # A batch of blanks is made as any other.
  for name, value in build(STEP).items():
    expected = shapes.pop(name)
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    assert value.sharding.is_equivalent_to(expected.sharding, value.ndim)
  assert not shapes
