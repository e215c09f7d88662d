"""A base is the network that its `model.json` says, and not only its weights."""

import dataclasses

import pytest

from tests import tiny
from tests.weights import checkpoints
from vlm_rlaif_jax.weights import bases
from vlm_rlaif_jax.weights.artifacts import ArtifactError

LLAMA, VISION = tiny.CFG.llama, tiny.CFG.vision


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return str(checkpoints.write_base(tmp_path_factory.mktemp('base') / 'ours'))


@pytest.mark.parametrize(
  ('part', 'change'),
  [
    ('llama', {'rope_theta': 5e5}),
    ('llama', {'eps': 1e-6}),
    ('llama', {'heads': 2, 'head_dim': 16, 'kv_heads': 1}),
    ('llama', {'heads': 8, 'head_dim': 4, 'kv_heads': 4}),
    ('llama', {'max_positions': 2 * LLAMA.max_positions}),
    ('vision', {'heads': 4}),
    ('vision', {'eps': 1e-6}),
    ('projector', 'relu'),
  ],
)
def test_a_run_for_another_network_of_the_same_shapes_is_refused(base, part, change):
  """Its loss would be no error, only larger."""
  value = change if part == 'projector' else None
  value = value or dataclasses.replace(getattr(tiny.CFG, part), **change)
  cfg = dataclasses.replace(tiny.CFG, **{part: value})
  field = part if part == 'projector' else f'{part}.{next(iter(change))}'
  with pytest.raises(ArtifactError, match=rf'model\.json: .*{field}=') as error:
    bases.load(base, cfg)
  assert '\n' not in str(error.value) and '--config.model.' in str(error.value)


def test_how_it_is_computed_and_fewer_positions_are_choices_of_the_run(base):
  llama = dataclasses.replace(LLAMA, max_positions=LLAMA.max_positions // 2)
  cfg = dataclasses.replace(tiny.CFG, llama=llama, dtype='bfloat16', remat='full')
  assert bases.load(base, cfg).fingerprint == bases.fingerprint(bases.base_folder(base))


def test_weights_are_looked_for_without_reading_them(tmp_path):
  cfg = dataclasses.replace(tiny.CFG, name='7b')
  assert bases.weight_files('', cfg)
  assert bases.weight_files(bases.RANDOM, cfg) == []
  with pytest.raises(ArtifactError, match=r'no base weights; make them from a checkp'):
    bases.weight_files(str(tmp_path), cfg)
