"""Packed rows beside padded ones, with XLA's form of the function that cuDNN serves."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.inference import decoder_weights, decoding
from vlm_rlaif_jax.inference.sampler import Sampling, example_keys
from vlm_rlaif_jax.nn import packed, vlm
from vlm_rlaif_jax.nn.llama import Llama
from vlm_rlaif_jax.nn.vlm import VIDEO, Vlm
from vlm_rlaif_jax.settings.models import LoraConfig

MODEL = Vlm(CFG, LORA)
N = 5
IDS = jnp.array(
  [
    [1, 5, VIDEO, 7, 8, 9, 4, 6, 2],
    [0, 0, 1, VIDEO, 7, 8, 2, 0, 0],  # pads on both sides
    [0, 1, VIDEO, 8, 9, 4, 4, 2, 0],
    [0, 0, 0, 1, 5, 7, 8, 2, 0],  # text alone
  ]
)


@pytest.fixture
def packs(monkeypatch):
  monkeypatch.setattr(packed, 'implementation', lambda dtype, size: 'xla')


@pytest.fixture(scope='module')
def variables():
  return {'params': random_params(), 'lora': random_adapter()}


@pytest.fixture(scope='module')
def visual():
  return jax.random.normal(jax.random.key(5), (len(IDS), N, CFG.llama.width))


def read(valid) -> np.ndarray:
  """Positions that somebody reads: from the first real one on."""
  return np.cumsum(np.asarray(valid), axis=1) > 0


def test_real_tokens_come_first_and_all_go_back():
  valid = jnp.array([[False, False, True, True, True, False, False]])
  where = packed.packing(valid)
  x = jnp.arange(7)[None]
  moved = packed.pack(x, where)
  assert moved.shape == (1, packed.STEP)
  assert moved[0, :7].tolist() == [2, 3, 4, 0, 1, 5, 6]
  assert where.rows.lengths.tolist() == [3]
  np.testing.assert_array_equal(packed.unpack(moved, where, 7), x)


@pytest.mark.slow
def test_hidden_states_are_those_of_padded_rows(variables, visual, packs, monkeypatch):
  """Of pads behind an answer, too: the reference trains values there."""

  def run():  # a program each, which the patch is in or not
    both = jax.jit(lambda *arrays: vlm.hidden(MODEL, *arrays)[:2])
    return both(variables, IDS, IDS != 0, visual)

  found, valid = run()
  monkeypatch.undo()
  padded, _ = run()
  keep = read(valid)
  assert (~np.asarray(valid) & keep).any()
  np.testing.assert_allclose(
    np.asarray(found)[keep], np.asarray(padded)[keep], atol=2e-5
  )


@pytest.mark.slow
def test_gradients_are_those_of_padded_rows(variables, visual, packs, monkeypatch):
  direction = jax.random.normal(jax.random.key(8), (1, 1, CFG.llama.width))

  def loss(adapter):
    both = {**variables, 'lora': adapter}
    hidden, valid, _ = vlm.hidden(MODEL, both, IDS, IDS != 0, visual)
    seen = jnp.cumsum(valid, axis=1) > 0
    return jnp.sum(jnp.where(seen[..., None], jnp.sin(hidden) * direction, 0.0))

  found = jax.jit(jax.grad(loss))(variables['lora'])
  monkeypatch.undo()
  expected = jax.jit(jax.grad(loss))(variables['lora'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max()),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ('targets', 'dropout', 'products'),
  [
    (LORA.targets, 0.0, 2 + 2),  # q, k, v and gate, up as one each; o, down
    (LORA.targets, 0.1, 7),  # each drops other inputs
    (('q', 'v', 'up'), 0.0, 1 + 1),
    (('o', 'down'), 0.0, 2),
  ],
)
def test_adapters_of_the_same_input_are_one_product(packs, targets, dropout, products):
  lora = LoraConfig(rank=3, alpha=3.0, dropout=dropout, targets=targets)
  decoder = Llama(CFG.llama, lora)
  x = jnp.ones((2, packed.STEP, CFG.llama.width))
  valid = jnp.ones((2, packed.STEP), bool)
  inputs = x, valid.astype(jnp.int32), packed.packing(valid).rows
  shapes = jax.eval_shape(decoder.init, jax.random.key(0), *inputs)
  keys = {'dropout': jax.random.key(1)}
  run = jax.make_jaxpr(lambda variables: decoder.apply(variables, *inputs, rngs=keys))
  widths = re.findall(r'f32\[2,128,(\d+)\] = dot_general', str(run(nn.unbox(shapes))))
  # The layers are a scan: its body is written once.
  assert sum(width in ('3', '6', '9') for width in widths) == products


@pytest.mark.slow
def test_a_packed_prompt_fills_the_same_cache(variables, visual, packs, monkeypatch):
  prompts = IDS[:, :5]
  settings = Sampling(8, eos=-1)

  def run():
    weights = decoder_weights.prepare(MODEL, variables, 'beside', unrolled=True)
    keys = example_keys(jax.random.key(0), jnp.arange(len(IDS)))
    sample = jax.jit(lambda *arrays: decoding.sample(MODEL, *arrays, settings).tokens)
    return sample(weights, prompts, prompts != 0, visual, keys)

  found = run()
  monkeypatch.undo()
  np.testing.assert_array_equal(found, run())


def test_the_tower_has_the_same_features(packs, monkeypatch):
  pixels = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  params = random_params()
  found = vlm.patch_features(MODEL, params, pixels)
  monkeypatch.undo()
  expected = vlm.patch_features(MODEL, params, pixels)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_nothing_is_packed_on_a_cpu():
  assert packed.implementation(jnp.bfloat16, 128) is None
