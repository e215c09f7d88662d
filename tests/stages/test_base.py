import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base as config
from vlm_rlaif_jax.config.build import from_config_dict
from vlm_rlaif_jax.config.sections import Log
from vlm_rlaif_jax.config.stages import BaseRun
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.world import stills
from vlm_rlaif_jax.stages import base
from vlm_rlaif_jax.train import bases

SETTINGS = from_config_dict(BaseRun, config.get_config())


@pytest.fixture(scope='module')
def talk():
  return base._Talk(tokens.load_tokenizer(bases.TINY), SETTINGS)


@pytest.mark.parametrize('phase', ['faces', 'pictures', 'mixed', 'strips'])
def test_a_batch_is_the_same_whenever_it_is_asked_for(talk, phase):
  first, other, again = (getattr(talk, phase)(number) for number in (3, 4, 3))
  leaves = lambda batch: [
    leaf
    for task in batch.values()
    for leaf in (task.values() if isinstance(task, dict) else [task])
  ]
  for a, b, c in zip(leaves(first), leaves(other), leaves(again), strict=True):
    np.testing.assert_array_equal(a, c)
    assert a.shape == b.shape and not np.array_equal(a, b)


@pytest.mark.parametrize('phase', ['pictures', 'mixed', 'strips'])
def test_every_sample_of_a_batch_has_something_to_learn(talk, phase):
  for task in getattr(talk, phase)(0).values():
    assert task['target'].any(axis=1).all()
    assert (task['ids'][task['target']] != 0).all()  # never a pad


def test_attributes_say_what_was_drawn():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = base.attributes(picture)
  assert table[:, 0].sum() == len(picture.objects) > 0
  for (color, shape), centre in zip(picture.objects, picture.centres, strict=True):
    there, kind, x, y = table[base.COLORS.index(color)]
    assert there == 1 and base.SHAPES[int(kind)] == shape
    np.testing.assert_allclose([64 * x, 64 * y], centre, rtol=1e-6)


def test_a_probe_that_reads_everything_is_off_by_no_pixel():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = base.attributes(picture)[None]
  read = np.zeros((len(base.COLORS), base.FIELDS), np.float32)
  read[:, 0] = np.where(table[0, :, 0] == 1, 30, -30)
  read[np.arange(len(read)), 1 + table[0, :, 1].astype(int)] = 30
  read[:, -2:] = 4 * table[0, :, 2:]
  probe = {'w': jnp.asarray(read.reshape(1, -1)), 'b': jnp.zeros(read.size)}
  loss, metrics = base.probe_loss(probe, jnp.ones((1, 1)), jnp.asarray(table))
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert metrics['shape_accuracy'] == 1 and metrics['pixels_off'] < 1e-3


def test_clip_loss_against_its_definition(rng):
  s = rng.normal(size=(3, 3))
  rows = [np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(3)]
  columns = [np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(3)]
  expected = (np.mean(rows) + np.mean(columns)) / 2
  np.testing.assert_allclose(base.clip_loss(jnp.asarray(s)), expected, rtol=1e-5)


def test_from_nothing_to_a_base(tmp_path):
  phases = dataclasses.replace(
    SETTINGS.base_run,
    **{f'{name}_steps': 1 for name in base.PHASES},
    **{f'{name}_batch': 4 for name in base.PHASES},
  )
  settings = dataclasses.replace(
    SETTINGS, base_run=phases, log=Log(every=1, progress=False)
  )
  summary = base.run(settings, tmp_path)
  made = bases.load(summary['artefact'], settings.model)
  assert all(
    np.isfinite(leaf).all() for leaf in made.params['llama']['layers']['q'].values()
  )
  for phase in ('tower', 'pictures', 'mixed', 'strips'):
    lines = (tmp_path / 'tiny/base' / phase / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1]
  # What a phase is depends on those before it, and on none after it.
  path = tmp_path / 'tiny/base/pictures/checkpoints/identity.json'
  known = json.loads(path.read_text())
  assert {'base_run.tower_steps', 'base_run.picture_batch'} <= set(known)
  assert not {'base_run.mixed_batch', 'base_run.strip_steps'} & set(known)
