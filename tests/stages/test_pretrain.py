import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import pretrain as config
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.sections import LogConfig
from vlm_rlaif_jax.stages import pretrain
from vlm_rlaif_jax.train import journal
from vlm_rlaif_jax.weights import bases, model_config, network_shapes, text_towers

SETTINGS = from_config_dict(PretrainRun, config.get_config())
SMALL = from_config_dict(PretrainRun, config.get_config('small'))


def brief(settings):
  """Returns settings with one step a phase, of few rows."""
  phases = dataclasses.replace(
    settings.pretrain,
    lists_strips=64,
    **{f'{name}_steps': 1 for name in pretrain.PHASES},
    **{f'{name}_batch': 4 for name in pretrain.PHASES},
  )
  log = LogConfig(every=1, progress=False)
  return dataclasses.replace(settings, pretrain=phases, log=log)


@pytest.mark.slow
def test_matrices_start_with_the_scale_of_their_inputs():
  params = network_shapes.init(SETTINGS.model, jax.random.key(0))
  scaled = pretrain.fan_in(params, jax.random.key(1))

  def scale(leaf, inputs):
    return float(jnp.std(leaf)) * inputs**0.5

  layers = scaled['llama']['layers']
  assert scale(layers['up']['w'], 128) == pytest.approx(1, rel=0.02)
  assert scale(layers['down']['w'], 352) == pytest.approx(0.3, rel=0.02)
  assert float(jnp.std(scaled['llama']['tokens']['w'])) == pytest.approx(0.5, rel=0.02)
  norm = scaled['llama']['final_norm']['scale']
  np.testing.assert_array_equal(norm, params['llama']['final_norm']['scale'])


def test_the_packaged_base_is_what_the_config_makes():
  record = json.loads((bases.TINY / pretrain.PROVENANCE).read_text())
  assert record['weights'] == bases.fingerprint(bases.TINY)
  now = pretrain.provenance(SETTINGS)
  del now['jax']
  assert {'seed', 'optim.learning_rate', 'pretrain.questions_steps'} <= set(now)
  assert {name: record.get(name) for name in now} == now
  # And nothing else, but for settings that there were then, and that did nothing.
  then = {f'optim.{name}' for name in ('batch_size', 'accumulate', 'epochs')}
  assert set(record) - set(now) == {'weights', 'jax', 'model.attention', *then}
  assert record['jax']


@pytest.mark.slow
def test_from_nothing_to_a_base(tmp_path):
  settings = brief(SETTINGS)
  summary = pretrain.run(settings, tmp_path)
  base = bases.load(summary['artifact'], settings.model)
  assert all(
    np.isfinite(leaf).all() for leaf in base.params['llama']['layers']['q'].values()
  )
  artifact = pathlib.Path(summary['artifact'])
  assert model_config.read_origin(artifact / 'model.json') == ('pad', True)
  weights = bases.fingerprint(artifact)
  folder = tmp_path / 'tiny/pretrain'
  record = json.loads((folder / 'artifact' / pretrain.PROVENANCE).read_text())
  assert record['weights'] == weights and record['pretrain.tower_steps'] == 1
  for phase in pretrain.PHASES:
    lines = (folder / phase / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1]
  # The identity of a phase depends on those before it, and on none after it.
  path = folder / 'lists/checkpoints/identity.json'
  identity = json.loads(path.read_text())
  assert {'pretrain.tower_steps', 'pretrain.lists_batch'} <= set(identity)
  assert not {'pretrain.questions_batch', 'pretrain.questions_steps'} & set(identity)


@pytest.mark.slow
def test_the_small_size_grows_from_the_packaged_base(tmp_path):
  summary = pretrain.run(brief(SMALL), tmp_path)
  artifact = pathlib.Path(summary['artifact'])
  assert summary['steps'] == {'questions': 1, 'forms': 1}
  assert {x.name for x in artifact.parent.iterdir()} >= {'questions', 'forms'}
  assert not (artifact.parent / 'tower').exists()

  # It has the tower, the text tower and the tokenizer of that base ...
  grown, tiny = (
    safetensors.numpy.load_file(folder / 'model.safetensors')
    for folder in (artifact, bases.TINY)
  )
  assert set(grown) == set(tiny)
  for name in (x for x in tiny if x.startswith(('tower', 'text'))):
    np.testing.assert_array_equal(grown[name], tiny[name])
  one, other = (folder / 'tokenizer.json' for folder in (artifact, bases.TINY))
  assert one.read_bytes() == other.read_bytes()
  assert text_towers.load('', str(artifact), SMALL.model).joint == SMALL.model.joint

  # ... and, at a learning rate of 0 in the first step, says what that one says.
  assert bases.load(str(artifact), SMALL.model).params['llama']['head']['w'].shape == (
    768,
    256,
  )
  head, old = grown['llama/head/w'].astype(np.float32), tiny['llama/head/w']
  np.testing.assert_allclose(head[:, :128] + head[:, 128:], old, atol=2e-3)
  record = json.loads((artifact / pretrain.PROVENANCE).read_text())
  assert record['grown_from'] == bases.fingerprint(bases.TINY)

  # Phases are not gone on with where the base has been replaced since.
  copy = tmp_path / 'base'
  shutil.copytree(bases.TINY, copy)
  edited = safetensors.numpy.load_file(copy / 'model.safetensors')
  edited['llama/head/w'][0, 0] += 1
  safetensors.numpy.save_file(edited, copy / 'model.safetensors')
  moved = dataclasses.replace(brief(SMALL), base=str(copy))
  with pytest.raises(journal.ResumeError, match=r'grown_from: '):
    pretrain.run(moved, tmp_path)
