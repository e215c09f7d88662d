"""A network that was grown computes what it did, wider and deeper."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.weights import bases, growth
from vlm_rlaif_jax.weights.artifacts import ArtifactError
from vlm_rlaif_jax.weights.network_shapes import abstract_params

TINY, SMALL = models.named('tiny'), models.named('small')


@pytest.fixture(scope='module')
def base():
  params = bases.load('', TINY).params
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


@pytest.fixture(scope='module')
def grown(base):
  return {**growth.grow(base, TINY, SMALL), 'tower': base['tower']}


def logits_of(cfg, params):
  model = Vlm(cfg)
  features = jax.random.normal(jax.random.key(0), (2, 3, 16, 128))
  visual = vlm.project(model, {'projector': params['projector']}, features)
  ids = jnp.array([[1, VIDEO, 40, 50, 60, 70], [1, VIDEO, 80, 90, 100, 110]])
  states, _, _ = vlm.hidden(
    model, {'params': {'llama': params['llama']}}, ids, ids != 0, visual
  )
  return visual, states @ params['llama']['head']['w'].T


def test_a_grown_network_computes_what_the_small_one_does(base, grown):
  visual, logits = logits_of(TINY, base)
  wide, same = logits_of(SMALL, grown)
  np.testing.assert_allclose(wide, np.tile(visual, 2), atol=1e-4)
  assert float(jnp.std(logits)) > 1
  np.testing.assert_allclose(same, logits, atol=1e-3)


def test_it_has_every_weight_of_the_large_one(grown):
  shapes = {k: v.shape for k, v in trees.flatten(abstract_params(SMALL)).items()}
  own = {k: v.shape for k, v in trees.flatten(grown).items()}
  assert own == {name: shapes[name] for name in own}
  assert set(shapes) == set(own)


def test_copies_get_parts_of_their_own_and_new_layers_write_nothing(base, grown):
  head, old = grown['llama']['head']['w'], np.asarray(base['llama']['head']['w'])
  first, second = head[:, :128], head[:, 128:]
  np.testing.assert_allclose(first + second, old, rtol=1e-5, atol=1e-7)
  assert np.median(np.abs(first - second) / np.abs(old)) > 0.1
  down = grown['llama']['layers']['down']['w']
  assert (np.abs(down).sum((1, 2)) > 0).tolist() == [True, False] * 4
  up = grown['llama']['layers']['up']['w']
  assert (np.abs(up).sum((1, 2)) > 0).all()


def test_a_seed_divides_in_its_own_way(base):
  other = growth.grow(base, TINY, SMALL, seed=1)
  again = growth.grow(base, TINY, SMALL, seed=1)
  ours = growth.grow(base, TINY, SMALL)
  up, same, another = (
    tree['llama']['layers']['up']['w'] for tree in (other, again, ours)
  )
  np.testing.assert_array_equal(up, same)
  assert not np.array_equal(up, another)


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'width': 192}, 'llama.width=128, of which 192 is no multiple'),
    ({'layers': 6}, 'llama.layers=4, of which 6 is no multiple'),
    ({'layers': 2}, 'llama.layers=4, of which 2 is no multiple'),
    ({'head_dim': 64}, r'llama.head_dim=32 \(this run has 64\)'),
    ({'kv_heads': 4}, 'another number of heads for each key head'),
  ],
)
def test_what_is_no_multiple_is_refused(base, change, told):
  large = dataclasses.replace(SMALL, llama=dataclasses.replace(SMALL.llama, **change))
  with pytest.raises(ArtifactError, match=f'cannot grow into .*small.*{told}'):
    growth.grow(base, TINY, large)
