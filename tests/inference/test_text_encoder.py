"""Texts of any length become unit vectors, the same in any company."""

import jax
import numpy as np
import pytest

from configs import models
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference.text_encoder import TextEncoder
from vlm_rlaif_jax.weights import text_towers

pytestmark = pytest.mark.slow
SHORT = [
  'The red circle stays.',
  'A blue ring at the top left.',
  'The red circle stays.',
]
LONG = ' '.join(['First the red circle moves left, then it stays.'] * 8)


@pytest.fixture(scope='module')
def tower():
  return text_towers.load('', '', models.tiny())


def encoder(tower, devices, batch=16):
  mesh = sharding.data_mesh(jax.devices()[:devices])
  return TextEncoder(tower.cfg, tower.joint, tower.params, tower.tokenizer, mesh, batch)


@pytest.fixture(scope='module')
def single(tower):
  return encoder(tower, 1)


def test_vectors_are_of_length_one_and_of_the_text_alone(single):
  texts = [*SHORT, '', LONG]
  vectors, is_long = single(texts)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  assert is_long.tolist() == [False] * 4 + [True]
  np.testing.assert_array_equal(vectors[0], vectors[2])
  assert np.max(np.abs(vectors[0] - vectors[1])) > 0.01
  assert single(texts).long_share == 1 / 5
  assert single([]).vectors.shape == (0, 64)


def test_a_long_text_is_the_mean_of_its_sentences(single):
  text = 'The red circle moves left. ' * 6 + 'A blue ring at the top. ' * 12
  sentences = single(['The red circle moves left.', 'A blue ring at the top.']).vectors
  (vector,), (is_long,) = single([text])
  mean = (6 * sentences[0] + 12 * sentences[1]) / 18
  assert is_long
  np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_eight_devices_and_several_batches_give_the_same(tower, single):
  texts = [f'The {c} circle moves {d}.' for c in ('red', 'blue', 'white', 'green')
           for d in ('left', 'right', 'up', 'down')] + [LONG, *SHORT]  # fmt: skip
  many = encoder(tower, 8, batch=8)
  np.testing.assert_allclose(many(texts).vectors, single(texts).vectors, atol=1e-5)
  assert len(many.program.called_with) <= len(many.lengths)
