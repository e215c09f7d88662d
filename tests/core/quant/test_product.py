"""The product with 4-bit weights: values, gradients, what is kept, layouts, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import models
from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import blocks, int4, nf4
from vlm_rlaif_jax.core.quant.product import (
  by_halves,
  gradient_by_halves,
  product,
  unpacked_gradient,
  unpacked_product,
)
from vlm_rlaif_jax.nn import layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import MeshConfig as MeshSettings
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.weights import network_shapes, placement

FORMATS = {
  'nf4': lambda w: nf4.quantize(w),
  'nf4, single level': lambda w: nf4.quantize(w, double_quant=False),
  'int4': lambda w: int4.quantize(w, 32),
}


def matrix(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('shape', [(64, 256), (24, 48)], ids=['pairs', 'one row'])
def test_product_and_gradient_are_those_of_the_unpacked_weight(rng, name, shape):
  leaf = jax.tree.map(jnp.asarray, FORMATS[name](matrix(rng, *shape)))
  whole = leaf.dequantize(jnp.float32)
  x = jnp.asarray(matrix(rng, 3, 5, shape[1]))
  plain = lambda x: jnp.einsum('...i,oi->...o', x, whole)

  @jax.jit
  def both(x):
    square = lambda f: jax.grad(lambda x: jnp.sum(jnp.square(f(x))))(x)
    packed = lambda x: layers.linear(x, leaf)
    return (packed(x), plain(x)), (square(packed), square(plain))

  values, gradients = both(x)
  np.testing.assert_allclose(*values, atol=1e-4)
  np.testing.assert_allclose(*gradients, atol=2e-2, rtol=1e-4)


@pytest.mark.parametrize('name', FORMATS)
def test_unpacked_whole_and_by_halves_are_one_product(rng, name):
  """What GPUs do, and what others do; bfloat16 adds nothing but a rounding."""
  leaf = jax.tree.map(jnp.asarray, FORMATS[name](matrix(rng, 64, 256)))
  x, grad = (jnp.asarray(matrix(rng, 7, n)) for n in (256, 64))
  np.testing.assert_allclose(unpacked_product(x, leaf), by_halves(x, leaf), atol=1e-4)
  np.testing.assert_allclose(
    unpacked_gradient(grad, leaf), gradient_by_halves(grad, leaf), atol=1e-4
  )


@pytest.mark.slow
def test_stacked_layers_are_quantized_one_by_one_and_scanned(rng):
  weight = matrix(rng, 3, 32, 128)
  stacked = nf4.quantize(weight)
  on_device = nf4.quantize(jnp.asarray(weight))
  jax.tree.map(np.testing.assert_array_equal, stacked, on_device)
  x = jnp.asarray(matrix(rng, 4, 128))
  _, scanned = jax.lax.scan(lambda carry, leaf: (carry, product(x, leaf)), 0, on_device)
  for index in range(3):
    one = jax.tree.map(jnp.asarray, nf4.quantize(weight[index]))
    np.testing.assert_allclose(scanned[index], product(x, one), atol=1e-5)


def test_int4_is_symmetric_and_half_a_step_off_at_most(rng):
  weight = matrix(rng, 16, 128)
  leaf = int4.quantize(weight, 32)
  error = np.abs(int4.dequantize(leaf, np.float32) - weight)
  step = np.repeat(leaf.scale.astype(np.float32), 32, axis=0).T
  assert (error <= 0.52 * step).all()
  other = int4.dequantize(int4.quantize(-weight, 32), np.float32)
  np.testing.assert_array_equal(other, -int4.dequantize(leaf, np.float32))


@pytest.mark.parametrize('spec', [('y', None), (None, 'y'), ('x', 'y')], ids=str)
def test_a_sharded_leaf_gives_the_same(rng, spec):
  mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('x', 'y'))
  leaf = nf4.quantize(matrix(rng, 2, 64, 512))
  whole = NamedSharding(mesh, PartitionSpec(None, *spec))
  layout = placement.leaf_sharding(leaf, whole)
  placed = jax.device_put(leaf, layout)
  out, inp = spec
  assert placed.codes.sharding.spec == PartitionSpec(None, inp, out)
  x = jnp.asarray(matrix(rng, 4, 512))
  run = jax.jit(lambda x, leaf: product(x, jax.tree.map(lambda a: a[1], leaf)))
  expected = run(x, jax.tree.map(jnp.asarray, leaf))
  np.testing.assert_allclose(run(x, placed), expected, atol=1e-4)


@pytest.mark.parametrize(('out', 'split'), [(8, ('fsdp', 'tensor')), (6, 'fsdp')])
def test_an_input_axis_that_does_not_divide_stays_whole(rng, out, split):
  """The output axis then takes its devices over, if it can."""
  mesh = sharding.make_mesh(MeshSettings(data=1, fsdp=2, tensor=4))
  leaf = nf4.quantize(matrix(rng, 1, out, 128 * 6))  # 6 pairs of blocks over 4 devices
  whole = NamedSharding(mesh, PartitionSpec(None, 'fsdp', 'tensor'))
  layout = placement.leaf_sharding(leaf, whole)
  assert layout.codes.spec == PartitionSpec(None, None, split)
  split_like_it = NamedSharding(mesh, PartitionSpec(None, 'tensor'))
  x = matrix(rng, 4, 128 * 6)
  run = jax.jit(lambda x, leaf: product(x, jax.tree.map(lambda a: a[0], leaf)))
  expected = run(x, jax.tree.map(jnp.asarray, leaf))
  actual = run(jax.device_put(x, split_like_it), jax.device_put(leaf, layout))
  np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('pairs', 'rows', 'exchanged'),
  [(8, 2, False), (8, 600, False), (6, 2, False), (6, 600, True)],
  ids=['whole pairs, few', 'whole pairs, many', 'cut pairs, few', 'cut pairs, many'],
)
def test_inputs_over_tensor_are_added_up_once(rng, pairs, rows, exchanged):
  """Values and gradients of one device; one sum over the devices, in x's dtype, and
  activations are gathered only where they are few."""
  mesh = sharding.make_mesh(MeshSettings(data=2, fsdp=1, tensor=4))
  out, inp = 64, 128 * pairs
  leaf = nf4.quantize(matrix(rng, 1, out, inp))
  whole = NamedSharding(mesh, PartitionSpec(None, None, 'tensor'))
  placed = jax.device_put(leaf, placement.leaf_sharding(leaf, whole))
  x = matrix(rng, 2, rows, inp)
  like_x = NamedSharding(mesh, PartitionSpec('data', None, 'tensor'))

  def both(x, leaf):
    run = lambda x: product(x, jax.tree.map(lambda a: a[0], leaf), 'mlp')
    y = run(x)
    return y, jax.grad(lambda x: jnp.sum(jnp.square(run(x))))(x)

  expected = jax.jit(both)(x, jax.tree.map(jnp.asarray, leaf))
  with jax.set_mesh(mesh):
    step = jax.jit(both, in_shardings=(like_x, placement.leaf_sharding(leaf, whole)))
    actual = step(jax.device_put(x, like_x), placed)
    text = step.lower(x.astype(jnp.bfloat16), placed).as_text()
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-3)
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=2e-1)
  assert ('all_to_all' in text) == exchanged
  assert ('all_reduce' in text) == (pairs == 8 or exchanged)


def test_a_leaf_is_saved_restored_and_donated(rng, tmp_path):
  leaf = nf4.quantize(jnp.asarray(matrix(rng, 2, 16, 128)))
  copied = jax.tree.map(np.array, leaf)  # copies: a view of a buffer keeps it
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'leaf', {'w': leaf})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'w': leaf})
    restored = checkpointer.restore(tmp_path / 'leaf', target)['w']
  assert restored.shape == (16, 128)
  jax.tree.map(np.testing.assert_array_equal, restored, copied)
  add = lambda leaf: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), leaf)
  passed = jax.jit(add, donate_argnums=0)(leaf)
  assert leaf.codes.is_deleted()
  np.testing.assert_array_equal(passed.codes, copied.codes + np.uint8(1))


def quantized_params(residency, dtype='float32'):
  mesh = sharding.make_mesh(MeshSettings(data=1), jax.devices()[:1])
  llama = jax.tree.map(np.asarray, random_params()['llama'])
  quant = QuantConfig(residency=residency, group=4)
  return placement.on_device({'llama': llama}, CFG, mesh, dtype, quant), quant


@jax.jit
def states(params):
  ids = jnp.array([[1, 5, -200, 7, 8], [0, 3, 4, -200, 9]])
  visual = jax.random.normal(jax.random.key(3), (2, 6, CFG.llama.width))
  variables = {'params': params, 'lora': random_adapter()}
  return vlm.hidden(Vlm(CFG, LORA), variables, ids, ids != 0, visual)[0]


@pytest.mark.slow
def test_packed_and_unpacked_residency_are_the_same_numbers():
  native, packed, unpacked, other = (
    np.asarray(states(quantized_params(name)[0]))
    for name in ('native', 'nf4', 'nf4_bf16', 'int4')
  )
  np.testing.assert_allclose(packed, unpacked, atol=2e-5)
  for quantized in (packed, other):
    assert 1e-3 < np.abs(quantized - native).max() < 2


def test_only_the_linears_of_the_decoder_are_quantized():
  params, quant = quantized_params('nf4')
  names = trees.flatten(params)
  packed = {name.rsplit('/', 1)[0] for name in names if name.endswith('/codes')}
  assert packed == {f'llama/layers/{name}/w' for name in LORA.targets}
  summary = placement.base_summary(params, quant)
  assert summary['residency'] == 'nf4'
  assert summary['bytes'] == sum(x.nbytes for x in names.values())
  assert summary['linear_bytes'] == sum(
    x.nbytes for name, x in names.items() if name.rsplit('/', 1)[0] in packed
  )


@pytest.mark.parametrize(('size', 'most'), [('7b', 3.9e9), ('13b', 7.3e9)])
def test_bytes_of_the_real_sizes(size, most):
  """By shapes: linears in at most 4.13 bits a weight, all else in bfloat16."""
  cfg = models.named(size)
  shapes = trees.flatten(network_shapes.abstract_params(cfg)['llama'])
  total = linear_bits = weights = 0
  for name, leaf in shapes.items():
    if placement.is_quantized(f'llama/{name}'):
      lead, out, inp = leaf.shape
      assert not blocks.is_flat((out, inp), nf4.BLOCK)
      quantized = jax.eval_shape(
        nf4.quantize, jax.ShapeDtypeStruct((out, inp), 'bfloat16')
      )
      nbytes = lead * trees.nbytes(quantized)
      linear_bits, weights = linear_bits + 8 * nbytes, weights + leaf.size
      total += nbytes
    else:
      total += 2 * leaf.size
  assert linear_bits / weights <= 4.13
  assert total <= most


@pytest.mark.slow
def test_nothing_unpacked_is_kept_for_the_way_back(rng):
  """Residuals of a scanned stack: activations, and nothing of the size of a weight."""
  weight = matrix(rng, 4, 512, 512)
  leaf = nf4.quantize(jnp.asarray(weight))
  a, b = jnp.ones((4, 2, 512)), jnp.zeros((4, 512, 2))

  def loss(adapter, leaf, x):
    def block(x, layer):
      leaf, a, b = layer
      return jax.nn.silu(layers.linear(x, leaf, (a, b))), None

    return jnp.sum(jax.lax.scan(block, x, (leaf, *adapter))[0])

  x = jnp.ones((2, 512))
  _, pull = jax.vjp(lambda adapter, x: loss(adapter, leaf, x), (a, b), x)
  residuals = [r for r in jax.tree.leaves(pull) if hasattr(r, 'shape')]
  assert residuals
  assert not [
    r.shape for r in residuals if r.size >= 512 * 512 and r.dtype != jnp.uint8
  ]
  wide = [r for r in residuals if r.dtype == jnp.uint8 and r.size >= leaf.codes.size]
  assert len(wide) <= 1  # the leaf itself, once


@pytest.mark.slow
def test_an_optimizer_step_changes_the_adapter_and_leaves_the_base():
  params, _ = quantized_params('nf4')
  before = jax.tree.map(np.asarray, params)
  adapter = random_adapter()
  model, optimizer = Vlm(CFG, LORA), optax.adam(1e-2)
  ids = jnp.array([[1, 5, -200, 7, 8]])
  visual = jnp.ones((1, 6, CFG.llama.width))

  def loss(adapter):
    variables = {'params': params, 'lora': adapter}
    return jnp.sum(vlm.hidden(model, variables, ids, ids != 0, visual)[0])

  gradient = jax.jit(jax.grad(loss))(adapter)
  assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradient))
  state = optimizer.init(adapter)
  assert trees.size(state) <= 2 * trees.size(adapter) + 1
  jax.tree.map(np.testing.assert_array_equal, before, params)
