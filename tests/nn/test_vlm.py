import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, patch_features, random_params
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.projector import pool
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO


def spliced_row(ids, valid, count):
  """The closed form of the splice, one position after the other."""
  out = []
  if VIDEO not in ids:
    out += [('pad', 0, False)] * (count - 1)
  for position, (token, real) in enumerate(zip(ids, valid, strict=True)):
    if token == VIDEO:
      out += [('visual', i, True) for i in range(count)]
    else:
      out.append(('text', position, real))
  return out


@pytest.mark.parametrize('seed', range(20))
def test_splice_equals_row_by_row_construction(seed):
  rng = np.random.default_rng(seed)
  length, count, batch = 12, 5, 6
  ids = np.zeros((batch, length), int)
  for row in range(batch):
    left, right = rng.integers(0, 4, 2)
    ids[row, left : length - right] = rng.integers(3, 60, length - left - right)
    if rng.random() < 0.8:
      ids[row, rng.integers(left, length - right)] = VIDEO
  valid = ids != 0
  text = rng.normal(size=(batch, length, 4)).astype(np.float32)
  visual = rng.normal(size=(batch, count, 4)).astype(np.float32)
  out, mask = vlm.splice(*map(jnp.asarray, (ids, valid, text, visual)))
  where = np.asarray(vlm.embedded_index(jnp.asarray(ids), count))
  for row in range(batch):
    expected = spliced_row(ids[row].tolist(), valid[row].tolist(), count)
    assert len(expected) == out.shape[1]
    for position, (kind, index, real) in enumerate(expected):
      assert bool(mask[row, position]) == real
      if kind == 'visual':
        np.testing.assert_array_equal(out[row, position], visual[row, index])
      if kind == 'text':
        np.testing.assert_array_equal(out[row, position], text[row, index])
        assert where[row, index] == position


def test_pooling_puts_temporal_tokens_first(rng):
  x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  tokens = np.asarray(pool(jnp.asarray(x)))
  assert tokens.shape == (2, 7, 5)
  np.testing.assert_allclose(tokens[:, :3], x.mean(2), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(tokens[:, 3:], x.mean(1), rtol=1e-5, atol=1e-6)


def test_pooling_comes_after_the_projector():
  """With an MLP between them, the two orders are different functions."""
  model, params = Vlm(CFG), random_params()
  features = jax.random.normal(jax.random.key(0), (1, 3, 4, 16))
  tokens = vlm.project(model, params, features)
  first = jnp.concatenate([features.mean(2), features.mean(1)], axis=1)
  other = model.apply({'params': params}, first, method=lambda m, x: m.projector(x))
  assert np.abs(np.asarray(tokens - other)).max() > 1e-3


def test_the_projectors_activation_is_a_field():
  import dataclasses

  params = random_params()
  features = jax.random.normal(jax.random.key(0), (1, 3, 4, 16))
  gelu = vlm.project(Vlm(CFG), params, features)
  relu = vlm.project(Vlm(dataclasses.replace(CFG, projector='relu')), params, features)
  assert np.abs(np.asarray(gelu - relu)).max() > 1e-3


@pytest.mark.slow
def test_features_come_from_the_layer_before_the_last():
  model, params = Vlm(CFG), random_params()
  pixels = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  patches = patch_features(model, params, pixels)
  assert patches.shape == (2, 4, 16)  # four patches, no class token
  changed = jax.tree.map(lambda x: x, params)
  changed['tower']['tail'] = jax.tree.map(lambda x: x + 1, params['tower']['tail'])
  np.testing.assert_array_equal(patches, patch_features(model, changed, pixels))
  without = {
    **params,
    'tower': {k: v for k, v in params['tower'].items() if k != 'tail'},
  }
  np.testing.assert_array_equal(patches, patch_features(model, without, pixels))
