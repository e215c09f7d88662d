"""The fused product for GPUs, interpreted on a CPU and lowered for CUDA without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.core.quant import int4, kernel, nf4
from vlm_rlaif_jax.core.quant.product import Layer, fused, is_fused, product
from vlm_rlaif_jax.settings.sections import MeshConfig


def random_leaf(rng, layers, out, inp, double=True, through=None):
  weight = rng.normal(size=(layers, out, inp)).astype(np.float32)
  return jax.tree.map(jnp.asarray, nf4.quantize(weight, double, through))


def inputs(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)


fused_rows = jax.jit(functools.partial(kernel.product, interpret=True))
plain_rows = jax.jit(product)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('rows', 'out', 'inp', 'double', 'through'),
  [
    (1, 256, 384, True, 'float16'),
    (33, 128, 1152, False, 'bfloat16'),  # nine pairs of blocks in as many shares
    (128, 128, 128, True, None),
  ],
)
def test_the_kernel_is_the_plain_product(rng, rows, out, inp, double, through):
  """Of a layer within a stack; its unpacked values are the same to the bit."""
  leaf, x = random_leaf(rng, 3, out, inp, double, through), inputs(rng, rows, inp)
  x = x.at[0].set(jnp.eye(1, inp, inp // 3, dtype=x.dtype)[0])  # picks an input
  actual = fused_rows(x, leaf, jnp.int32(1))
  assert actual.dtype == x.dtype
  expected = plain_rows(x, Layer(leaf, jnp.int32(1)))
  np.testing.assert_array_equal(actual[0], expected[0])
  actual, expected = (y.astype(jnp.float32) for y in (actual, expected))
  np.testing.assert_allclose(actual, expected, rtol=2**-7, atol=1e-2)


def test_who_takes_the_kernel(rng):
  leaf = random_leaf(rng, 1, 128, 256)
  assert is_fused(inputs(rng, 128, 1, 256), leaf)
  assert not is_fused(inputs(rng, 129, 1, 256), leaf)
  assert not is_fused(inputs(rng, 8, 256).astype(jnp.float32), leaf)
  assert not is_fused(inputs(rng, 8, 256), random_leaf(rng, 1, 32, 256))
  plain = jax.tree.map(jnp.asarray, int4.quantize(np.ones((1, 128, 256), np.float32)))
  assert not is_fused(inputs(rng, 8, 256), plain)
  for settings, rows, fuses in (
    (MeshConfig(data=8), 1024, True),  # 128 rows on each device
    (MeshConfig(data=8), 1025, False),
    (MeshConfig(data=8), 4, False),  # rows that do not divide
    (MeshConfig(data=4, tensor=2), 8, False),  # the leaf may be sharded
    (MeshConfig(data=1, fsdp=8), 8, False),
  ):
    with jax.set_mesh(sharding.make_mesh(settings)):
      assert is_fused(inputs(rng, rows, 1, 256), leaf) == fuses, settings


def test_each_device_multiplies_its_own_rows(rng):
  mesh = sharding.make_mesh(MeshConfig(data=8))
  leaf, x = random_leaf(rng, 2, 128, 256), inputs(rng, 16, 1, 256)
  layer = Layer(leaf, jnp.int32(1))
  with jax.set_mesh(mesh):
    placed = sharding.put_batch(x, mesh), sharding.put(layer, sharding.replicated(mesh))
    run = jax.jit(lambda x, layer: fused(x, layer, interpret=True))
    actual = run(*placed)
    text = run.lower(*placed).compile().as_text()
  assert actual.sharding.is_equivalent_to(placed[0].sharding, actual.ndim)
  assert not [word for word in ('all-gather', 'all-reduce') if word in text]
  expected = fused_rows(x[:, 0], leaf, jnp.int32(1))
  np.testing.assert_array_equal(actual[:, 0], expected)


@pytest.mark.parametrize(
  ('rows', 'platform', 'kernels'), [(32, 'cuda', 1), (2048, 'cuda', 0), (32, 'tpu', 0)]
)
def test_target_and_rows_choose_in_the_lowered_program(rng, rows, platform, kernels):
  """No device of the kind is needed; programs for the CPU have no trace of it."""
  stack = random_leaf(rng, 2, 128, 256)

  def step(x, stack):
    body = lambda x, index: (x + product(x, Layer(stack, index)).sum(), None)
    return jax.lax.scan(body, x, jnp.arange(2))[0]

  # Newer versions of JAX want to know which GPU a kernel is lowered for.
  device = jax.sharding.AbstractDevice('NVIDIA A100', None, 'gpu')
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(step).trace(inputs(rng, rows, 256), stack)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert len(
    [x for x in text.splitlines() if 'triton' in x and 'custom_call' in x]
  ) == (kernels)


def test_gradients_take_the_plain_way_back(rng):
  stack, x = random_leaf(rng, 2, 128, 256), inputs(rng, 4, 256)
  total = lambda x, leaf: product(x, leaf).astype(jnp.float32).sum()
  run = jax.jit(jax.grad(total))
  whole = run(x, Layer(stack, jnp.int32(1)))
  np.testing.assert_array_equal(whole, run(x, jax.tree.map(lambda a: a[1], stack)))
