import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.feature_store import FeatureStore, video_key
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'bfloat16'])
def test_round_trip(tmp_path, rng, dtype):
  store = FeatureStore(tmp_path, {'weights': 'x'}, dtype)
  value = rng.normal(size=(3, 4)).astype(
    ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype
  )
  assert 'ab12' not in store
  store.write('ab12', value)
  assert 'ab12' in store
  assert store.read('ab12').dtype == value.dtype
  np.testing.assert_array_equal(store.read('ab12'), value)


def test_other_weights_have_another_folder(tmp_path):
  a = FeatureStore(tmp_path, {'weights': 'x'}, 'float32')
  b = FeatureStore(tmp_path, {'weights': 'y'}, 'float32')
  a.write('k0', np.ones(2))
  assert 'k0' not in b


def test_a_replaced_file_has_another_key(tmp_path):
  path = tmp_path / 'v.mp4'
  path.write_bytes(b'1')
  key = video_key(Video(('v.mp4',)), tmp_path)
  assert key == video_key(Video(('v.mp4',)), tmp_path)
  assert key != video_key(Video(('v.mp4',), (0, 4)), tmp_path)
  path.write_bytes(b'22')
  assert key != video_key(Video(('v.mp4',)), tmp_path)


def test_features_depend_on_how_the_network_reads_a_frame(tmp_path):
  mesh = sharding.make_mesh(MeshConfig())

  def folders(frames=50, vision=CFG.vision, **changes):
    model = Vlm(dataclasses.replace(CFG, vision=vision, **changes))
    features = VisualFeatures(
      model, None, 'weights', DataConfig(frames=frames), tmp_path, mesh
    )
    return features.patches.folder, features.tokens.folder

  usual = folders()
  assert folders() == usual and usual[0] != usual[1]
  patches, tokens = folders(projector='relu')  # which reads the patches
  assert patches == usual[0] and tokens != usual[1]
  for changed in (
    folders(vision=dataclasses.replace(CFG.vision, feature_layer=-1)),
    folders(vision=dataclasses.replace(CFG.vision, heads=4)),
    folders(frames=7),
    folders(dtype='float16'),
  ):
    assert not set(changed) & set(usual)
