"""A step weighs every target alike, wherever it lies, and a row by what it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig, OptimConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import optim, pairwise, shardings, step_weights, supervised
from vlm_rlaif_jax.train.state import TrainState

ROWS, T, N = 8, 24, 3


def one_rate(step):
  return jnp.float32(1.0)


@pytest.fixture(scope='module')
def batch():
  """Answers of 1 to 20 tokens, so that means of means are far off."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 60, (ROWS, T)).astype(np.int32)
  ids[:, 1] = VIDEO
  lengths = np.array([1, 2, 20, 20, 1, 1, 2, 16])
  first = np.arange(T) - 3
  return {
    'ids': ids,
    'target': (first >= 0) & (first < lengths[:, None]),
    'visual': rng.normal(size=(ROWS, N, CFG.llama.width)).astype(np.float32),
  }


def stepped(batch, accumulate: int, mean: str = 'step', devices: int = 1):
  """Returns the loss and the gradient of a step, as plain gradient descent shows it."""
  mesh = sharding.make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
  optimizer = optax.identity()
  base = sharding.put({'llama': random_params()['llama']}, sharding.replicated(mesh))
  values = {'lora': random_adapter()}
  layout = shardings.trainable(CFG, LORA, mesh, values)
  state = shardings.start(values, layout, optimizer, 0, mesh)
  step = supervised.program(
    functools.partial(supervised.loss, Vlm(CFG, LORA)), optimizer, one_rate, accumulate,
    mesh, state, base, step_weights.weigh_by(step_weights.targets_of, mean),
  )  # fmt: skip
  new, metrics = step(state, base, sharding.put_batch(batch, mesh))
  change = jax.tree.map(lambda a, b: np.asarray(a) - b, values, new.trainable)
  return float(metrics['loss']), trees.flatten(jax.device_get(change))


@pytest.mark.slow
def test_a_step_does_not_depend_on_its_layout(batch):
  loss, gradient = stepped(batch, 1)
  for accumulate, devices in ((4, 2), (2, 4)):
    other, moved = stepped(batch, accumulate, devices=devices)
    assert other == pytest.approx(loss, rel=1e-5), (accumulate, devices)
    for name, value in gradient.items():
      np.testing.assert_allclose(moved[name], value, atol=1e-5, err_msg=name)
  unequal, _ = stepped(batch, 4, 'micro_batch')  # the reference's
  assert abs(unequal - loss) > 1e-3


@pytest.mark.parametrize('name', ['patches', 'visual'])
def test_work_is_counted_by_the_frames_of_a_batch(name):
  """Captions of clips have fewer than `data.frames`."""
  settings = SftRun(model=CFG, lora=LORA, data=DataConfig(frames=8, buckets=(T,)))
  width, patches = CFG.llama.width, CFG.vision.patches

  def positions(frames):
    shapes = {
      'patches': (2, frames, patches, 8),
      'visual': (2, frames + patches, width),
    }
    batch = {'ids': np.zeros((2, T)), name: np.zeros(shapes[name])}
    return supervised.step_flops(settings, batch)[0]

  assert positions(3) == 2 * (T + 3 + patches - 1)
  assert positions(5) - positions(3) == 2 * 2


def linear_step(rows, mean: str, accumulate: int = 1, clip: float = 0.0):
  """Returns how far Adam's first step on some rows goes, and its first moment.

  Args:
    rows: targets of each; the gradient of a whole batch is 1.
  """
  settings = OptimConfig(clip_norm=clip)
  optimizer = optim.make_optimizer(settings)
  target = jnp.arange(4)[None] <= jnp.asarray(rows)[:, None]  # the first is no target

  def loss(trainable, base, part, key):
    weight = part['target'][:, 1:]
    return jnp.sum(trainable * weight) / jnp.maximum(jnp.sum(weight), 1), {}

  weigh = step_weights.weigh_by(step_weights.targets_of, mean)
  start = jnp.zeros(())
  state = TrainState(
    jnp.int32(0), start, optim.init_optimizer(optimizer, start), jax.random.key(0)
  )
  step = supervised.make_step(loss, optimizer, one_rate, accumulate, weigh)
  new, _ = jax.jit(step)(state, {}, {'target': target})
  moments = jax.tree.leaves(new.opt_state)[1]
  return -float(new.trainable), float(moments)


@pytest.mark.parametrize('mean', ['step', 'micro_batch'])
def test_a_step_on_one_row_is_an_eighth_of_a_step_on_eight(mean):
  """Adam's first step has the size of the rate, whatever that of the gradient."""
  whole, moment = linear_step([3] * 8, mean)
  assert whole == pytest.approx(1.0, rel=1e-5)
  assert moment == pytest.approx(0.1, rel=1e-5)
  part, moment = linear_step([3] + [0] * 7, mean)
  assert part == pytest.approx(1 / 8, rel=1e-5)
  assert moment == pytest.approx(0.1 / 8, rel=1e-5)
  _, moment = linear_step([3] + [0] * 7, mean, accumulate=2)
  assert moment == pytest.approx(0.1 / 8, rel=1e-5)  # not halved by a blank one
  _, moment = linear_step([3] + [0] * 7, mean, clip=0.5)
  assert moment == pytest.approx(0.05 / 8, rel=1e-5)  # clipped before it is scaled


@pytest.mark.slow
def test_the_score_of_a_batch_leaves_blank_rows_out():
  """A blank row has a score of its own, which is nobody's."""
  rng = np.random.default_rng(1)
  ids = rng.integers(3, 60, (4, 2, 6)).astype(np.int32)
  ids[:, :, 2] = VIDEO
  ids[2:] = 0
  rows = {
    'ids': ids,
    'valid': ids != 0,
    'preferred': np.array([0, 1, 0, 0]),
    'weight': np.array([1, 1, 0, 0], np.float32),
    'visual': rng.normal(size=(4, N, CFG.llama.width)).astype(np.float32),
  }
  head = heads.init_head(jax.random.key(3), CFG.llama.width)
  trainable = {'lora': random_adapter(), 'head': head}
  base = {'llama': random_params()['llama']}

  scores = jax.jit(functools.partial(pairwise.score_pairs, Vlm(CFG, LORA)))
  _, metrics = jax.jit(functools.partial(pairwise.pair_loss, Vlm(CFG, LORA), 1e-3))(
    trainable, base, rows, jax.random.key(0)
  )
  expected = np.mean(np.asarray(scores(trainable, base, rows))[:2])
  assert float(metrics['score']) == pytest.approx(expected, rel=1e-5)
