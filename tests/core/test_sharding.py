"""Layouts change where numbers are computed, not which."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from configs import layouts as named
from configs import models
from configs import ppo as ppo_config
from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding, sharding_table, trees
from vlm_rlaif_jax.core.quant import product
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan import phases
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sections import MeshConfig, OptimConfig, QuantConfig
from vlm_rlaif_jax.train import optim, shardings, supervised
from vlm_rlaif_jax.weights import placement

CHIPS = {'v5e-16': 16, 'v5e-256': 256}
MESHES = {
  'data': MeshConfig(data=8),
  'fsdp': MeshConfig(data=1, fsdp=8),
  'tensor': MeshConfig(data=4, tensor=2),
  'all': MeshConfig(data=2, fsdp=2, tensor=2),
}
ROWS, T, FRAMES = 8, 7, 2
SIZES = ('tiny', '7b', '13b')  # layouts are for the real ones; tiny has every part


def abstract_mesh(settings: MeshConfig, chips: int):
  sizes = [settings.data, settings.fsdp, settings.tensor]
  sizes[sizes.index(-1)] = chips // abs(sizes[0] * sizes[1] * sizes[2])
  return AbstractMesh(tuple(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.slow
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', [n for n in named.NAMES if n])
def test_every_leaf_of_every_size_has_a_layout(size, name):
  """An axis without a rule raises, and so does one that its mesh axis cannot divide."""
  cfg = models.named(size)
  settings = named.LAYOUTS[name]['mesh']
  if size == 'tiny' and settings.tensor == 8:
    pytest.skip('four heads do not divide over eight')
  mesh = abstract_mesh(settings, CHIPS.get(name, 8))
  trained = {
    'lora': shardings.abstract_adapter(cfg, LoraConfig(), mesh),
    'head': shardings.abstract_head(cfg, mesh),
  }
  decoders = {
    how: shardings.abstract_base(cfg, mesh, 'llama', quant=QuantConfig(residency=how))
    for how in ('native', 'nf4', 'nf4_bf16', 'int4')
  }
  whole = {
    **decoders,
    'clip': shardings.abstract_base(cfg, mesh, 'tower', 'projector'),
    'state': shardings.abstract_state(
      trained, optim.make_optimizer(OptimConfig(clip_norm=1.0)), mesh
    ),
  }
  rows = sharding_table.table(whole)
  assert len(rows) == len(jax.tree.leaves(whole))
  size_of = lambda x: x.size * trees.itemsize(x.dtype)
  total = lambda tree: sum(size_of(x) for x in jax.tree.leaves(tree))
  spread = mesh.shape['fsdp'] * mesh.shape['tensor']
  assert total(whole) / spread <= sharding.bytes_per_device(whole) <= total(whole)
  if size != 'tiny':  # decoders are spread evenly but for their norms, packed ones too
    for how, decoder in decoders.items():
      held = sharding.bytes_per_device(decoder)
      assert held * spread < 1.01 * total(decoder), how


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', [n for n in named.NAMES if n])
def test_cache_and_batches_of_every_size_are_split(size, name):
  cfg = models.named(size).llama
  settings = named.LAYOUTS[name]['mesh']
  if size == 'tiny' and settings.tensor == 8:
    pytest.skip('four heads do not divide over eight')
  mesh = abstract_mesh(settings, CHIPS.get(name, 8))
  rows = jax.ShapeDtypeStruct((256, 128), jnp.int32)
  batch = shardings.rows(mesh, {'ids': rows})
  shards = sharding.batch_shards(mesh)
  assert sharding.bytes_per_device(batch) * shards == 256 * 128 * 4
  shape = (cfg.layers, 256, cfg.kv_heads, 64, cfg.head_dim)
  names = ('layer', 'batch', 'kv_heads', 'length', None)
  cache = jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, sharding.spec(names))
  )
  assert sharding.bytes_per_device(cache) * mesh.size == 2 * cache.size


def constraints(jaxpr):
  """(shape, spec) of every layout that a traced program asks for."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'sharding_constraint':
      yield eqn.invars[0].aval.shape, eqn.params['sharding'].spec
    for inner in jaxprs_in_params(eqn.params):
      yield from constraints(inner)


@pytest.mark.slow
@pytest.mark.parametrize('size', ['tiny', '7b'])
def test_no_constraint_does_nothing(size):
  """The 7b size has the critic of 13b; the update calls what scoring calls."""
  mesh = sharding.make_mesh(MESHES['all'])
  settings = from_config_dict(PpoRun, ppo_config.get_config(size))
  found = {}
  for phase in phases.of(settings, mesh, (LoraConfig(), LoraConfig())):
    if phase.name not in ('rollout', 'score'):
      continue
    traced = phase.program.trace(*phase.arguments)
    for shape, spec in constraints(traced.jaxpr.jaxpr):
      found.setdefault(phase.name, []).append(shape)
      assert math.prod(sharding.ways(mesh, axes) for axes in spec) > 1
      NamedSharding(mesh, spec).shard_shape(shape)  # raises where it does not divide
  assert set(found) == {'rollout', 'score'}
  assert any(len(shape) == 5 for shape in found['rollout'])  # the cache


def test_an_unnamed_axis_is_refused():
  with pytest.raises(sharding.MeshError, match="logical axis 'embde' is not in the"):
    sharding.spec(('batch', 'embde'))


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(3, 60, (ROWS, T)).astype(np.int32)
  ids[:, 2] = VIDEO
  return {
    'ids': ids,
    'target': ids > 20,
    'patches': rng.normal(size=(ROWS, FRAMES, 4, CFG.vision.width)).astype(np.float32),
  }


def gradients(mesh, cfg=CFG, held=None):
  """Loss and gradients of adapter and projector, with every tree laid out."""
  params = random_params(cfg=cfg)
  frozen = placement.on_device(
    {'llama': params['llama']}, cfg, mesh, quant=held or QuantConfig()
  )
  values = {'lora': random_adapter(cfg=cfg), 'projector': params['projector']}
  layout = shardings.trainable(cfg, LORA, mesh, values)
  program = sharding.Program(
    'gradient',
    lambda t, b, batch: jax.value_and_grad(
      lambda t: supervised.loss(Vlm(cfg, LORA), t, b, batch, jax.random.key(0))[0]
    )(t),
    mesh,
    (layout, sharding.layout_of(frozen), sharding.by_batch(mesh)),
    (sharding.replicated(mesh), layout),
  )
  batch = sharding.put_batch(arrays(), mesh)
  arguments = (sharding.put(values, layout), frozen, batch)
  return program, arguments, program(*arguments)


def assert_close(found, expected, tolerance):
  """Losses to 1e-5, gradients to a share of the largest number of each leaf."""
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  wanted = trees.flatten(jax.device_get(expected[1]))
  for leaf, value in trees.flatten(jax.device_get(found[1])).items():
    largest = np.abs(wanted[leaf]).max()  # sums over devices have another order
    np.testing.assert_allclose(value, wanted[leaf], rtol=0, atol=tolerance * largest)


@pytest.fixture(scope='module')
def alone():
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  return jax.device_get(gradients(mesh)[2])


@pytest.mark.slow
@pytest.mark.parametrize('name', MESHES)
def test_losses_and_gradients_are_those_of_one_device(name, alone):
  mesh = sharding.make_mesh(MESHES[name])
  _, arguments, (loss, gradient) = gradients(mesh)
  assert_close((loss, gradient), alone, 1e-5)
  measured = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(arguments))
  assert sharding.bytes_per_device(arguments) == measured


@pytest.mark.slow
@pytest.mark.parametrize('few', [0, product.FEW_ROWS], ids=['exchanged', 'gathered'])
def test_packed_weights_over_tensor_give_the_same(few, monkeypatch):
  """`o` has whole pairs of blocks for each device, `down` has not."""
  monkeypatch.setattr(product, 'FEW_ROWS', few)
  llama = dataclasses.replace(CFG.llama, width=256, mlp=384, head_dim=64)
  cfg, held = dataclasses.replace(CFG, llama=llama), QuantConfig(residency='nf4')
  alone = gradients(sharding.make_mesh(MeshConfig(), jax.devices()[:1]), cfg, held)[2]
  program, arguments, found = gradients(sharding.make_mesh(MESHES['tensor']), cfg, held)
  assert ('all_to_all' in program.trace(*arguments).lower().as_text()) == (few == 0)
  # Random weights of this width amplify rounding, to 3.4e-5 here; a wrong part gives 1.
  assert_close(found, alone, 1e-4)


@pytest.mark.slow
def test_a_rollout_is_the_same_on_any_number_of_devices():
  """What a row draws is decided by its number, not by where it is."""
  model, drawn = Vlm(CFG, LORA), []
  ids = arrays()['ids']
  visual = np.random.default_rng(1).normal(size=(ROWS, 5, CFG.llama.width))
  for count in (1, 2, 4, 8):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:count])
    params = placement.on_device({'llama': random_params()['llama']}, CFG, mesh)
    adapter = sharding.put(random_adapter(), shardings.adapter(CFG, LORA, mesh))
    rows = sharding.by_batch(mesh)
    program = sharding.Program(
      'rollout',
      lambda params, adapter, batch: sampler.sample(
        model,
        {'params': params, 'lora': adapter},
        batch['ids'],
        batch['ids'] != 0,
        batch['visual'],
        sampler.example_keys(jax.random.key(0), batch['number']),
        sampler.Sampling(6, eos=-1),
      ),
      mesh,
      (None, None, rows),
      rows,
    )
    batch = {'ids': ids, 'visual': np.float32(visual), 'number': np.arange(ROWS)}
    drawn.append(
      jax.device_get(program(params, adapter, sharding.put_batch(batch, mesh)))
    )
  assert len({tuple(row) for row in drawn[0].tokens}) > 1
  for other in drawn[1:]:
    np.testing.assert_array_equal(other.tokens, drawn[0].tokens)
    np.testing.assert_allclose(other.logprobs, drawn[0].logprobs, atol=1e-5)


def test_constraints_reach_the_compiler():
  """Inside a program a constraint names mesh axes; without a mesh it is nothing."""
  mesh = sharding.make_mesh(MESHES['all'])
  program = sharding.Program(
    'one', lambda x: sharding.constrain(x, 'batch', 'length', 'stream'), mesh, (None,)
  )
  text = str(program.trace(jnp.zeros((8, 4, 2))).jaxpr)
  assert "PartitionSpec(('data', 'fsdp')" in text or "('data', 'fsdp')" in text, text
  plain = jax.make_jaxpr(lambda x: sharding.constrain(x, 'batch', None))(
    jnp.zeros((8, 4))
  )
  assert not plain.eqns


def test_a_state_is_consumed_and_laid_out_like_its_parameters():
  mesh = sharding.make_mesh(MESHES['all'])
  values = {'lora': random_adapter()}
  optimizer = optim.make_optimizer(OptimConfig(clip_norm=1.0))
  layout = shardings.trainable(CFG, LORA, mesh, values)
  state = shardings.start(values, layout, optimizer, 0, mesh)
  adam = next(part for part in state.opt_state if hasattr(part, 'mu'))
  assert sharding.layout_of(adam.mu) == layout
  assert any(s.spec != jax.sharding.PartitionSpec() for s in jax.tree.leaves(layout))


@pytest.mark.parametrize(
  ('mesh', 'message'),
  [
    (
      MeshConfig(data=3),
      'data=3 x fsdp=1 x tensor=1 does not make 8 devices; for instance',
    ),
    (MeshConfig(data=2, fsdp=2), 'data=2 x fsdp=2 x tensor=1 does not make 8 devices'),
  ],
)
def test_a_mesh_that_devices_cannot_form(mesh, message):
  with pytest.raises(sharding.MeshError, match=message) as error:
    sharding.make_mesh(mesh)
  assert '\n' not in str(error.value)


def test_a_batch_that_does_not_divide():
  mesh = sharding.make_mesh(MeshConfig())
  with pytest.raises(sharding.MeshError, match='12 does not divide over the 8 devices'):
    sharding.check_batch(12, mesh, 'config.ppo.micro_batch')


def test_a_training_step_on_a_cpu_has_its_own_products():
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  options = sharding.gradient_options(mesh)
  program = lambda options: sharding.Program(
    'f', lambda x: x @ x, mesh, (None,), options=options
  )
  x = jnp.ones((256, 256))
  text = lambda options: program(options).compile(x).as_text()
  if options is not None:  # an XLA that knows the setting
    assert 'ynn' in text(None) and 'ynn' not in text(options)
  np.testing.assert_array_equal(program(options)(x), program(None)(x))


def test_rows_of_a_process_with_others_between_them_are_refused():
  """A batch of 8 would have 12 rows, four of them twice."""
  assert sharding.one_slice({(2, 4), (0, 2)}) == slice(0, 4)
  with pytest.raises(
    sharding.MeshError, match=r'rows \[\(0, 2\), \(4, 6\)\] of a batch'
  ):
    sharding.one_slice({(0, 2), (4, 6)})
