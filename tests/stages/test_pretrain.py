import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain as config
from vlm_rlaif_jax.data.world import lessons, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.sections import LogConfig
from vlm_rlaif_jax.stages import pretrain
from vlm_rlaif_jax.weights import bases, network_shapes

SETTINGS = from_config_dict(PretrainRun, config.get_config())


@pytest.fixture(scope='module')
def courses():
  """A network, its probe, and three strips."""
  rng = np.random.default_rng(0)
  drawn = [scenes.sample_scene(rng) for _ in range(3)]
  courses = [lessons.scene_courses(one) for one in drawn]
  task = {key: np.stack([one[key] for one in courses]) for key in courses[0]}
  width = SETTINGS.model.llama.width
  task['visual'] = rng.normal(size=(3, 28, width)).astype(np.float16)
  task['ids'] = np.ones((3, 5), np.int32)
  params = network_shapes.init(SETTINGS.model, jax.random.key(0))
  probe = pretrain.courses_probe(width, jax.random.key(1))
  return Vlm(SETTINGS.model), {'llama': params['llama'], 'courses': probe}, task


def test_a_probe_that_reads_all_courses_loses_nothing(courses):
  model, trainable, task = courses
  one = jax.tree.map(lambda leaf: leaf[:1], task)
  one['does'] = np.full_like(one['does'], 3)
  one['moves'] = np.tile(np.float32([1, 2, -1]), (*one['moves'].shape[:3], 1))
  sure = jax.tree.map(jnp.zeros_like, trainable['courses'])
  bias = np.zeros((len(lessons.COLORS), lessons.COURSES), np.float32)
  bias[:, 3] = 50
  sure['does']['b'] = jnp.asarray(bias.ravel())
  sure['moves']['b'] = jnp.tile(jnp.asarray([2.0, -1.0]), len(lessons.COLORS))
  loss, metrics = pretrain.courses_loss(model, {**trainable, 'courses': sure}, one, 1)
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert metrics['course_accuracy'] == 1


@pytest.mark.parametrize('phase', range(scenes.PHASES))
def test_courses_are_read_off_the_end_of_their_phase_halfway_up(courses, phase):
  model, trainable, task = courses
  still = {**task, 'moves': np.zeros_like(task['moves'])}
  still['does'] = np.where(np.arange(3)[:, None] == phase, task['does'], -1)
  assert (still['does'] >= 0).any()

  def loss(llama, visual):
    trained = {**trainable, 'llama': llama}
    return pretrain.courses_loss(model, trained, {**still, 'visual': visual}, 0.3)[0]

  visual = task['visual'].astype(np.float32)
  weights, pictures = jax.grad(loss, (0, 1))(trainable['llama'], visual)
  seen = np.abs(pictures).sum(axis=(0, 2)) > 0
  last = 4 * phase + 3  # the fourth of the phase's pictures
  assert seen[: last + 1].all() and not seen[last + 1 :].any()
  used = np.abs(weights['layers']['up']['w']).sum(axis=(1, 2)) > 0
  assert used.tolist() == [True, True, False, False]


def test_matrices_start_with_the_scale_of_their_inputs():
  params = network_shapes.init(SETTINGS.model, jax.random.key(0))
  made = pretrain.fan_in(params, jax.random.key(1))
  scale = lambda leaf, inputs: float(jnp.std(leaf)) * inputs**0.5
  layers = made['llama']['layers']
  assert scale(layers['up']['w'], 128) == pytest.approx(1, rel=0.02)
  assert scale(layers['down']['w'], 352) == pytest.approx(0.3, rel=0.02)
  assert float(jnp.std(made['llama']['tokens']['w'])) == pytest.approx(0.5, rel=0.02)
  norm = made['llama']['final_norm']['scale']
  np.testing.assert_array_equal(norm, params['llama']['final_norm']['scale'])


def test_a_probe_that_reads_everything_is_off_by_no_pixel():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = lessons.attributes(picture)[None]
  read = np.zeros((len(lessons.COLORS), lessons.FIELDS), np.float32)
  read[:, 0] = np.where(table[0, :, 0] == 1, 30, -30)
  read[np.arange(len(read)), 1 + table[0, :, 1].astype(int)] = 30
  read[:, -2:] = 4 * table[0, :, 2:]
  probe = {'w': jnp.asarray(read.reshape(1, -1)), 'b': jnp.zeros(read.size)}
  loss, metrics = pretrain.probe_loss(probe, jnp.ones((1, 1)), jnp.asarray(table))
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert metrics['shape_accuracy'] == 1 and metrics['pixels_off'] < 1e-3


def test_clip_loss_against_its_definition(rng):
  s = rng.normal(size=(3, 3))
  rows = [np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(3)]
  columns = [np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(3)]
  expected = (np.mean(rows) + np.mean(columns)) / 2
  np.testing.assert_allclose(pretrain.clip_loss(jnp.asarray(s)), expected, rtol=1e-5)


def test_the_packaged_base_is_what_the_config_makes():
  made = json.loads((bases.TINY / pretrain.MADE).read_text())
  assert made['weights'] == bases.fingerprint(bases.TINY)
  now = pretrain.made_by(SETTINGS)
  del now['jax']
  assert {'seed', 'optim.learning_rate', 'pretrain.questions_steps'} <= set(now)
  assert {name: made.get(name) for name in now} == now
  # And nothing else, but for settings that there were then, and that did nothing.
  then = {f'optim.{name}' for name in ('batch_size', 'accumulate', 'epochs')}
  assert set(made) - set(now) == {'weights', 'jax', 'model.attention', *then}
  assert made['jax']


def test_from_nothing_to_a_base(tmp_path):
  phases = dataclasses.replace(
    SETTINGS.pretrain,
    lists_strips=64,
    **{f'{name}_steps': 1 for name in pretrain.PHASES},
    **{f'{name}_batch': 4 for name in pretrain.PHASES},
  )
  settings = dataclasses.replace(
    SETTINGS, pretrain=phases, log=LogConfig(every=1, progress=False)
  )
  summary = pretrain.run(settings, tmp_path)
  made = bases.load(summary['artifact'], settings.model)
  assert all(
    np.isfinite(leaf).all() for leaf in made.params['llama']['layers']['q'].values()
  )
  weights = bases.fingerprint(pathlib.Path(summary['artifact']))
  made_by = json.loads((tmp_path / 'tiny/base/artifact' / pretrain.MADE).read_text())
  assert made_by['weights'] == weights and made_by['pretrain.tower_steps'] == 1
  for phase in pretrain.PHASES:
    lines = (tmp_path / 'tiny/base' / phase / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1]
  # What a phase is depends on those before it, and on none after it.
  path = tmp_path / 'tiny/base/lists/checkpoints/identity.json'
  known = json.loads(path.read_text())
  assert {'pretrain.tower_steps', 'pretrain.lists_batch'} <= set(known)
  assert not {'pretrain.questions_batch', 'pretrain.questions_steps'} & set(known)
