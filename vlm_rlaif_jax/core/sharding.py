"""One mesh, one rule table. Change a line of RULES and the model is laid out anew.

Weights carry logical axis names from where they are declared (`nn/layers.py`); here the
names become axes of the mesh `('data', 'fsdp', 'tensor')`. Axis types are Auto: the
compiler propagates layouts from the arguments of `jax.jit` (what used to be pjit).
"""

import math

import jax
import numpy as np
from flax.core import meta
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlm_rlaif_jax.config import sections
from vlm_rlaif_jax.config.build import UserError

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str | None, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'layer': None,
  'embed': 'fsdp',
  'embed_out': None,
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'rank': None,
  'pixels': None,
  'vision': None,
  'vision_heads': 'tensor',
  'vision_mlp': 'tensor',
  'joint': None,
  None: None,
}


class MeshError(UserError):
  """A mesh that the devices cannot form, or a batch that it cannot divide."""


def make_mesh(settings: sections.Mesh, devices=None) -> jax.sharding.Mesh:
  """The mesh of a run; a size of -1 takes the devices that are left."""
  devices = list(jax.devices() if devices is None else devices)
  sizes = [settings.data, settings.fsdp, settings.tensor]
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % fixed == 0:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if math.prod(sizes) != len(devices):
    shown = ' x '.join(f'{n}={s}' for n, s in zip(AXES, sizes, strict=True))
    raise MeshError(
      f'config.mesh: {shown} does not make {len(devices)} devices; for instance '
      f'data=-1, fsdp={math.gcd(fixed, len(devices))}, tensor=1 does'
    )
  return jax.sharding.Mesh(
    np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3
  )


def spec(axes, rules=None) -> PartitionSpec:
  """Logical axis names -> mesh axes."""
  rules = RULES if rules is None else rules
  unknown = [name for name in axes if name not in rules]
  if unknown:
    raise MeshError(f'logical axis {unknown[0]!r} is not in the rule table')
  return PartitionSpec(*(rules[name] for name in axes))


def shardings(boxed, mesh, rules=None):
  """The layout of a tree of weights declared with logical axes.

  Args:
    boxed: what `jax.eval_shape(model.init, ...)` returns.
  """
  specs = meta.get_partition_spec(boxed)
  return jax.tree.map(
    lambda names: NamedSharding(mesh, spec(names, rules)),
    specs,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh, rules=None) -> NamedSharding:
  """The first axis over the mesh axes of 'batch', the others whole."""
  return NamedSharding(mesh, spec(('batch',), rules))


def put_batch(batch, mesh):
  """Host arrays with a leading batch axis -> device arrays split over the mesh.

  Under several processes each passes its own part of the batch.
  """
  layout = by_batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, layout)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(layout, x), batch
  )


def ways(mesh, axes: str | tuple[str, ...] | None) -> int:
  """Over how many devices mesh axes split an array."""
  names = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(mesh.shape[name] for name in names)


def batch_shards(mesh) -> int:
  """Over how many devices a batch is split."""
  return ways(mesh, RULES['batch'])


def check_batch(size: int, mesh, field: str) -> None:
  shards = batch_shards(mesh)
  if size % shards:
    raise MeshError(
      f'{field}: {size} does not divide over the {shards} devices of data x fsdp; the '
      f'nearest that does is {max(shards, round(size / shards) * shards)}'
    )


def constrain(x, *axes):
  """Asks for a layout of an activation by logical names; nothing without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes))
