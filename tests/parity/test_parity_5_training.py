"""What training computes: Adam's steps, the reward of a sequence, the pairwise loss.

float32; Adam 1e-6 absolute, scores and losses 1e-4.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from tests.parity import oracle
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.train import optim, pairwise

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]
CFG = oracle.CFG


@pytest.mark.parametrize('decay', [0.0, 0.01])
@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_adam_trajectory(rng, decay, clip):
  """AdamW of torch, decoupled decay, clipped by the joint norm, a changing rate."""
  start = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
  settings = OptimConfig(weight_decay=decay, clip_norm=clip)
  optimizer = optim.make_optimizer(settings)
  ours = {name: jnp.asarray(value) for name, value in start.items()}
  state = optim.init_optimizer(optimizer, ours)
  expected = {n: torch.nn.Parameter(oracle.as_torch(v)) for n, v in start.items()}
  reference = torch.optim.AdamW(expected.values(), weight_decay=decay, eps=settings.eps)
  for step in range(20):
    rate = 1e-2 * (step + 1) / 20
    gradient = {n: 3 * rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    for name, parameter in expected.items():
      parameter.grad = oracle.as_torch(gradient[name])
    if clip:
      torch.nn.utils.clip_grad_norm_(expected.values(), clip)
    reference.param_groups[0]['lr'] = rate
    reference.step()
    ours, state = optim.apply_gradients(optimizer, gradient, state, ours, rate)
  for name, parameter in expected.items():
    np.testing.assert_allclose(ours[name], parameter.detach(), atol=1e-6, rtol=1e-5)


SHAPES = {'a': (4, 8), 'b': (8, 3)}


@pytest.mark.slow
def test_reward_and_pairwise_loss(tmp_path, rng):
  """A score is read at the last position of a left-padded sequence."""
  model = oracle.llama()
  cfg, params = oracle.ours(oracle.saved(model, tmp_path), ['llama'])
  pairs, length, width = 3, 9, CFG.llama.width
  ids = rng.integers(3, CFG.llama.vocab, (pairs, 2, length))
  ids[0, 1, :3] = 0
  preferred = np.asarray([0, 1, 1])
  linear = torch.nn.Linear(width, 1)

  rows = oracle.as_torch(ids.reshape(-1, length))
  hidden = model.model(rows, attention_mask=(rows != 0).long()).last_hidden_state[:, -1]
  expected = linear(hidden).reshape(pairs, 2)
  first, second = expected[:, 0], expected[:, 1]
  loss = torch.nn.functional.binary_cross_entropy_with_logits(
    second - first, oracle.as_torch(preferred).float()
  ) + 1e-3 * torch.abs(torch.mean(first + second))
  loss.backward()

  head = heads.ScalarHead(
    w=jnp.asarray(linear.weight.detach().numpy()[0]),
    b=jnp.asarray(linear.bias.detach().numpy()[0]),
  )
  batch = {
    'ids': ids,
    'valid': ids != 0,
    'visual': np.zeros((pairs, 1, width), np.float32),
    'preferred': preferred,
    'weight': np.ones(pairs, np.float32),
  }
  trainable = {'lora': {}, 'head': head}
  scores = jax.jit(functools.partial(pairwise.score_pairs, Vlm(cfg)))(
    trainable, params, batch
  )
  np.testing.assert_allclose(scores, expected.detach(), atol=oracle.ATOL)
  loss_of = lambda h: pairwise.pair_loss(
    Vlm(cfg), 1e-3, {**trainable, 'head': h}, params, batch, jax.random.key(0)
  )
  (value, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(head)
  np.testing.assert_allclose(value, loss.item(), atol=oracle.ATOL)
  np.testing.assert_allclose(gradient.w, linear.weight.grad[0], atol=oracle.ATOL)


def test_pairwise_loss_alone(rng):
  first, second = (rng.normal(size=16).astype(np.float32) for _ in range(2))
  preferred = rng.integers(0, 2, 16)
  expected = torch.nn.functional.binary_cross_entropy_with_logits(
    oracle.as_torch(second - first), oracle.as_torch(preferred).float()
  )
  actual = preference.bradley_terry_loss(first, second, preferred, 0.0, np.ones(16))
  np.testing.assert_allclose(actual, expected.item(), rtol=1e-6)
