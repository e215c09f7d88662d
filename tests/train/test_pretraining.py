"""The probes of the tiny base read what they should, where they should."""

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
from vlm_rlaif_jax.train import pretraining
from vlm_rlaif_jax.weights import network_shapes

SETTINGS = from_config_dict(PretrainRun, config.get_config())


@pytest.fixture(scope='module')
def strips():
  """A network with its probe, and a task of three strips."""
  rng = np.random.default_rng(0)
  sampled = [scenes.sample_scene(rng) for _ in range(3)]
  labels = [lessons.motion_labels(scene) for scene in sampled]
  task = {key: np.stack([row[key] for row in labels]) for key in labels[0]}
  width = SETTINGS.model.llama.width
  task['visual'] = rng.normal(size=(3, 28, width)).astype(np.float16)
  task['ids'] = np.ones((3, 5), np.int32)
  params = network_shapes.init(SETTINGS.model, jax.random.key(0))
  probe = pretraining.init_motion_probe(width, jax.random.key(1))
  trainable = {'llama': params['llama'], 'linear_probe': probe}
  return Vlm(SETTINGS.model), trainable, task


@pytest.mark.slow
def test_a_probe_that_reads_all_motion_loses_nothing(strips):
  model, trainable, task = strips
  task = jax.tree.map(lambda leaf: leaf[:1], task)
  task['action'] = np.full_like(task['action'], 3)
  shape = (*task['displacement'].shape[:3], 1)
  task['displacement'] = np.tile(np.float32([1, 2, -1]), shape)
  sure = jax.tree.map(jnp.zeros_like, trainable['linear_probe'])
  bias = np.zeros((len(lessons.COLORS), lessons.ACTIONS), np.float32)
  bias[:, 3] = 50
  sure['action']['b'] = jnp.asarray(bias.ravel())
  sure['displacement']['b'] = jnp.tile(jnp.asarray([2.0, -1.0]), len(lessons.COLORS))
  trainable = {**trainable, 'linear_probe': sure}
  loss, metrics = pretraining.motion_loss(model, trainable, task, 1)
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert metrics['course_accuracy'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('phase', range(scenes.PHASES))
def test_actions_are_read_off_the_end_of_their_phase_halfway_up(strips, phase):
  model, trainable, task = strips
  still = {**task, 'displacement': np.zeros_like(task['displacement'])}
  still['action'] = np.where(np.arange(3)[:, None] == phase, task['action'], -1)
  assert (still['action'] >= 0).any()

  def loss(llama, visual):
    changed = {**trainable, 'llama': llama}
    return pretraining.motion_loss(model, changed, {**still, 'visual': visual}, 0.3)[0]

  visual = task['visual'].astype(np.float32)
  weights, pictures = jax.grad(loss, (0, 1))(trainable['llama'], visual)
  is_read = np.abs(pictures).sum(axis=(0, 2)) > 0
  last = 4 * phase + 3  # the fourth of the phase's pictures
  assert is_read[: last + 1].all() and not is_read[last + 1 :].any()
  used = np.abs(weights['layers']['up']['w']).sum(axis=(1, 2)) > 0
  assert used.tolist() == [True, True, False, False]


@pytest.mark.slow
def test_a_probe_that_reads_everything_is_off_by_no_pixel():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = lessons.attributes(picture)[None]
  read = np.zeros((len(lessons.COLORS), lessons.FIELDS), np.float32)
  read[:, 0] = np.where(table[0, :, 0] == 1, 30, -30)
  read[np.arange(len(read)), 1 + table[0, :, 1].astype(int)] = 30
  read[:, -2:] = 4 * table[0, :, 2:]
  probe = {'w': jnp.asarray(read.reshape(1, -1)), 'b': jnp.zeros(read.size)}
  loss, metrics = pretraining.probe_loss(probe, jnp.ones((1, 1)), jnp.asarray(table))
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert metrics['shape_accuracy'] == 1 and metrics['pixels_off'] < 1e-3
