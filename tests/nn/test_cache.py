"""The kernel that reads filled slots, beside plain operations, in the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.nn import attention, cache, cache_int8, cache_kernel

B, S, G, K = 3, 256, 4, 16
START = jnp.array([0, 17, 100])


def drawn(*shape, seed=0, dtype='float32'):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def token_and_cache(dtype='float32', queries=1):
  """Returns q with some queries for each of G key heads, keys and values."""
  shapes = ((B, queries * G, K), (B, S, G, K), (B, S, G, K))
  return [drawn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize('stop', [101, 256])
@pytest.mark.parametrize(
  ('shares', 'heads', 'queries'), [(1, 4, 1), (3, 2, 1), (3, 8, 4), (0, 2, 8)]
)
def test_kernel_and_plain_operations_agree(stop, shares, heads, queries):
  q, keys, values = token_and_cache(queries=queries)
  stops = jnp.full(B, stop)
  found = cache_kernel.attend(
    q, keys, values, START, stops, shares=shares, heads=heads, interpret=True
  )
  plain = cache.by_xla(q, keys, values, START, stops)
  np.testing.assert_allclose(found, plain, atol=2e-6)


def test_in_16_bits_they_agree_to_rounding():
  q, keys, values = token_and_cache('bfloat16')
  stops = jnp.full(B, 200)
  found = cache_kernel.attend(q, keys, values, START, stops, shares=2, interpret=True)
  exact = cache.by_xla(
    *(x.astype(jnp.float32) for x in (q, keys, values)), START, stops
  )
  error = np.asarray(found, np.float32) - np.asarray(exact)
  assert np.linalg.norm(error) < 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(
  ('heads', 'key_heads', 'dtype', 'served'),
  [
    (32, 32, 'bfloat16', True),
    (32, 8, 'bfloat16', True),  # four queries a key head, as in Llama 3
    (32, 2, 'bfloat16', False),  # sixteen: for the tensor cores
    (24, 8, 'bfloat16', False),  # three: kernels have powers of two
    (32, 32, 'float32', False),
  ],
)
def test_which_heads_the_kernel_serves(monkeypatch, heads, key_heads, dtype, served):
  monkeypatch.setattr(target, 'platform', lambda: 'gpu')
  q = jax.ShapeDtypeStruct((B, heads, 128), dtype)
  assert cache.has_kernel(q, jax.ShapeDtypeStruct((B, S, key_heads, 128), dtype)) == (
    served
  )


def test_what_lies_outside_is_not_read():
  """Left pads and empty slots may hold anything; a row that has ended sees nothing."""
  q, keys, values = token_and_cache()
  stops = jnp.array([101, 128, 0])
  slot = jnp.arange(S)[None]
  outside = (slot < START[:, None]) | (slot >= stops[:, None])
  dirty = jnp.where(outside[..., None, None], 1e4, keys)
  attend = lambda keys: cache_kernel.attend(
    q, keys, values, START, stops, shares=2, interpret=True
  )
  found = attend(dirty)
  np.testing.assert_array_equal(found[:2], attend(keys)[:2])
  assert np.isfinite(found).all()


def test_plain_operations_are_the_attention_of_the_network():
  """With fewer key heads than query heads, too."""
  q, keys, values = drawn(B, 2 * G, K), *token_and_cache()[1:]
  stops = jnp.full(B, 200)
  slot = jnp.arange(S)[None]
  mask = (slot >= START[:, None]) & (slot < 200)
  mask = jnp.pad(mask, ((0, 0), (0, 1)))[:, None]  # a new key that nobody sees
  past = tuple(jnp.swapaxes(x, 1, 2) for x in (keys, values))
  new = jnp.zeros((B, G, 1, K))
  network = attention.attend(q[:, :, None], new, new, mask, past)
  found = cache.by_xla(q, keys, values, START, stops)
  np.testing.assert_allclose(found, network[:, :, 0], atol=2e-6)


def test_in_8_bits_no_element_moves_by_more_than_half_a_step():
  x = drawn(B, S, G, K) * jnp.exp(drawn(B, S, G, 1, seed=1))  # heads of other sizes
  x = x.at[0, 0].set(0.0)
  held = cache_int8.quantize(x)
  assert held.codes.dtype == jnp.int8 and held.shape == x.shape
  assert held.scale.shape == (B, S, G)
  found = held.codes.astype(jnp.float32) * held.scale[..., None]
  step = np.asarray(jnp.max(jnp.abs(x), -1, keepdims=True)) / 127
  assert (np.abs(found - x) <= 0.5001 * step).all()
  np.testing.assert_array_equal(found[0, 0], 0.0)
  alone = cache_int8.quantize(x[1:2, 5:6])  # a token does not depend on the others
  np.testing.assert_array_equal(alone.codes, held.codes[1:2, 5:6])
  np.testing.assert_array_equal(alone.scale, held.scale[1:2, 5:6])


@pytest.mark.parametrize(('shares', 'heads', 'queries'), [(1, 4, 1), (3, 2, 2)])
def test_in_8_bits_all_compute_the_same_and_nearly_the_exact(shares, heads, queries):
  q, keys, values = token_and_cache(queries=queries)
  values = values * jnp.exp(drawn(B, S, G, 1, seed=7))
  held = [cache_int8.quantize(x) for x in (keys, values)]
  rounded = [x.codes.astype(jnp.float32) * x.scale[..., None] for x in held]
  stops = jnp.array([101, 256, 200])
  wanted = cache.by_xla(q, *rounded, START, stops)
  plain = cache.by_xla(q, *held, START, stops)
  kernel = cache_kernel.attend(
    q, *held, START, stops, shares=shares, heads=heads, interpret=True
  )
  np.testing.assert_allclose(plain, wanted, atol=2e-6)
  np.testing.assert_allclose(kernel, wanted, atol=2e-6)
  slot = jnp.arange(S)[None]
  mask = (slot >= START[:, None]) & (slot < stops[:, None])
  mask = jnp.pad(mask, ((0, 0), (0, 1)))[:, None]  # a new key that nobody sees
  past = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), tuple(held))
  new = jnp.zeros((B, G, 1, K))
  network = attention.attend(q[:, :, None], new, new, mask, past)
  np.testing.assert_allclose(network[:, :, 0], wanted, atol=2e-6)
  error = np.linalg.norm(plain - cache.by_xla(q, keys, values, START, stops))
  assert 0 < error < 0.02 * np.linalg.norm(wanted)


def test_a_token_is_written_in_8_bits():
  keys, new = drawn(B, S, G, K), drawn(B, 1, G, K, seed=1)
  found = cache.write(cache_int8.quantize(keys), new, 7)
  wanted = cache_int8.quantize(cache.write(keys, new, 7))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_slots_are_a_multiple_that_holds_all():
  assert [cache.slots(n) for n in (1, 128, 129, 1649)] == [128, 128, 256, 1664]
