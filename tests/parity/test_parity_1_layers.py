"""The smallest parts first: embedding, norms, rotary attention, MLP, one block.

float32, tolerance 1e-5 absolute.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from tests.parity import oracle
from vlm_rlaif_jax.nn import attention, layers
from vlm_rlaif_jax.nn.llama import Block, Llama

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]
CFG = oracle.CFG.llama
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """A PyTorch LLaMA and our weights, read from its files."""
  model = oracle.llama()
  folder = oracle.saved(model, tmp_path_factory.mktemp('llama'))
  return model, oracle.ours(folder, ['llama'])[1]['llama']


def layer(params, index):
  import jax

  return jax.tree.map(lambda x: x[index], params['layers'])


def close(ours, expected, tolerance=TOLERANCE):
  np.testing.assert_allclose(ours, expected.detach().numpy(), atol=tolerance, rtol=0)


def states(rng, batch=2, length=7):
  return rng.normal(size=(batch, length, CFG.width)).astype(np.float32)


def test_embedding(pair, rng):
  model, params = pair
  ids = rng.integers(0, CFG.vocab, (2, 5))
  actual = Llama(CFG).apply({'params': params}, ids, method='embed')
  close(actual, model.model.embed_tokens(oracle.as_torch(ids)), 0)


def test_rms_norm(pair, rng):
  model, params = pair
  x = states(rng)
  actual = layers.rms_norm(x, params['final_norm']['scale'], CFG.eps)
  close(actual, model.model.norm(oracle.as_torch(x)))


def test_layer_norm(rng):
  x, scale, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 16), 16, 16))
  expected = torch.nn.functional.layer_norm(
    *(
      oracle.as_torch(v) if i != 1 else (16,) for i, v in enumerate((x, 0, scale, bias))
    )
  )
  close(layers.layer_norm(x, scale, bias, 1e-5), expected)


def test_rotary_positions(pair, rng):
  """Rotate-half: the first half of a head is paired with the second."""
  from transformers.models.llama import modeling_llama

  model, _ = pair
  x = rng.normal(size=(2, CFG.heads, 7, CFG.head_dim)).astype(np.float32)
  positions = np.arange(7)[None].repeat(2, 0)
  cos, sin = model.model.rotary_emb(oracle.as_torch(x), oracle.as_torch(positions))
  expected, _ = modeling_llama.apply_rotary_pos_emb(
    oracle.as_torch(x), oracle.as_torch(x), cos, sin
  )
  rotation = attention.rotations(positions, x.shape[-1], CFG.rope_theta, jnp.float32)
  close(attention.rope(jnp.asarray(x), rotation), expected)


@pytest.mark.parametrize('groups', [4, 2, 1])
def test_attention_with_grouped_keys(rng, groups):
  shape = lambda heads: (2, heads, 6, 8)
  q = rng.normal(size=shape(4)).astype(np.float32)
  k, v = (rng.normal(size=shape(groups)).astype(np.float32) for _ in range(2))
  mask = np.tril(np.ones((6, 6), bool))[None].repeat(2, 0)
  wide = lambda x: oracle.as_torch(x).repeat_interleave(4 // groups, dim=1)
  expected = torch.nn.functional.scaled_dot_product_attention(
    oracle.as_torch(q), wide(k), wide(v), attn_mask=oracle.as_torch(mask)[:, None]
  )
  close(attention.attend(q, k, v, mask), expected)


def test_mlp(pair, rng):
  model, params = pair
  x, block = states(rng), layer(params, 1)
  gate, up = (layers.linear(x, block[name]['w']) for name in ('gate', 'up'))
  import jax

  actual = layers.linear(jax.nn.silu(gate) * up, block['down']['w'])
  close(actual, model.model.layers[1].mlp(oracle.as_torch(x)))


def test_block(pair, rng):
  """Attention with grouped keys and values included: 4 heads, 2 of keys."""
  model, params = pair
  x = states(rng)
  positions = np.arange(7)[None].repeat(2, 0)
  mask = np.tril(np.ones((7, 7), bool))[None].repeat(2, 0)
  rotation = attention.rotations(positions, CFG.head_dim, CFG.rope_theta, jnp.float32)
  actual, _ = Block(CFG, None).apply(
    {'params': layer(params, 0)}, x, rotation, mask, None, {}, 0
  )
  rotary = model.model.rotary_emb(oracle.as_torch(x), oracle.as_torch(positions))
  hidden = np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32)[:, None]
  expected = model.model.layers[0](
    oracle.as_torch(x),
    attention_mask=oracle.as_torch(hidden),
    position_ids=oracle.as_torch(positions),
    position_embeddings=rotary,
  )
  close(actual, expected[0] if isinstance(expected, tuple) else expected, 2e-5)
