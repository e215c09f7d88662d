"""The loss of a step on pairs is that of the step, however it is cut into parts."""

import jax
import numpy as np
import optax
import pytest

from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.reward import RewardConfig, RewardRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig, OptimConfig
from vlm_rlaif_jax.train import pairwise, shardings

PAIRS = 8
MODEL = Vlm(CFG, LORA)


def one_rate(step):
  return np.float32(1.0)


@pytest.fixture(scope='module')
def batch():
  """Pairs of which the last two are blank."""
  rng = np.random.default_rng(2)
  ids = rng.integers(3, 60, (PAIRS, 2, 6)).astype(np.int32)
  ids[:, :, 2] = VIDEO
  return {
    'ids': ids,
    'valid': ids != 0,
    'preferred': rng.integers(0, 2, PAIRS),
    'weight': np.array([1] * 6 + [0] * 2, np.float32),
    'visual': rng.normal(size=(PAIRS, 3, CFG.llama.width)).astype(np.float32),
  }


def stepped(batch, accumulate: int, mean: str = 'step', devices: int = 1):
  """Returns the loss of a step and its gradient, by plain gradient descent."""
  mesh = sharding.make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
  optimizer = optax.identity()
  base = sharding.put({'llama': random_params()['llama']}, sharding.replicated(mesh))
  head = heads.init_head(jax.random.key(3), CFG.llama.width)
  values = {'lora': random_adapter(), 'head': head}
  layout = shardings.trainable(CFG, LORA, mesh, values)
  state = shardings.start(values, layout, optimizer, 0, mesh)
  settings = RewardRun(
    model=CFG,
    lora=LORA,
    data=DataConfig(buckets=(64,)),
    optim=OptimConfig(batch_size=PAIRS, accumulate=accumulate, loss_mean=mean),
    reward=RewardConfig(centering=3.0),
  )
  step, score = pairwise.programs(
    settings, MODEL, optimizer, one_rate, mesh, state, base
  )
  rows = sharding.put_batch(batch, mesh)
  scores = np.asarray(score(state.trainable, base, rows))
  new, metrics = step(state, base, rows)
  change = jax.tree.map(lambda a, b: np.asarray(a) - b, values, new.trainable)
  return float(metrics['loss']), trees.flatten(jax.device_get(change)), scores


@pytest.mark.slow
def test_scores_are_centered_over_the_step(batch):
  loss, gradient, scores = stepped(batch, 1)
  sums, real = scores.sum(axis=1), batch['weight'] > 0
  means = [sums[real & (np.arange(PAIRS) % 4 == part)].mean() for part in range(4)]
  assert min(means) < 0 < max(means)  # absolute values of parts do not add up
  sign = np.where(batch['preferred'] == 1, 1, -1)
  ranking = np.log1p(np.exp(-sign * (scores[:, 1] - scores[:, 0])))[real].mean()
  assert loss == pytest.approx(ranking + 3 * abs(sums[real].mean()), rel=1e-5)

  for accumulate, devices in ((4, 1), (2, 2)):
    other, moved, _ = stepped(batch, accumulate, devices=devices)
    assert other == pytest.approx(loss, rel=1e-5), (accumulate, devices)
    for name, value in gradient.items():
      np.testing.assert_allclose(moved[name], value, atol=1e-4, err_msg=name)
  reference, _, _ = stepped(batch, 4, 'micro_batch')
  assert reference == pytest.approx(
    ranking_of_parts(scores, sign, batch) + 3 * np.mean(np.abs(means)), rel=1e-5
  )


def ranking_of_parts(scores, sign, batch) -> float:
  """Returns the mean over micro-batches of their ranking terms."""
  terms = np.log1p(np.exp(-sign * (scores[:, 1] - scores[:, 0])))
  parts = [batch['weight'] * (np.arange(PAIRS) % 4 == part) for part in range(4)]
  return float(np.mean([np.sum(terms * w) / w.sum() for w in parts]))
