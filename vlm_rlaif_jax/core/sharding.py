"""One mesh, one rule table. Change a line of RULES and the model is laid out anew.

Weights carry logical axis names from where they are declared (`nn/layers.py`); here the
names become axes of the mesh `('data', 'fsdp', 'tensor')`. Axis types are Auto: the
compiler propagates layouts from the arguments of `jax.jit` (what used to be pjit).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings import sections
from vlm_rlaif_jax.settings.build import UserError

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str | None, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'layer': None,
  'stream': None,
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


def make_mesh(settings: sections.MeshConfig, devices=None) -> jax.sharding.Mesh:
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


def data_mesh(devices) -> jax.sharding.Mesh:
  """All devices along `data`, for work that any one of them can do by itself."""
  return make_mesh(sections.MeshConfig(), list(devices))


def spec(axes) -> PartitionSpec:
  """Logical axis names -> mesh axes, by `RULES`."""
  unknown = [name for name in axes if name not in RULES]
  if unknown:
    raise MeshError(f'logical axis {unknown[0]!r} is not in the rule table')
  return PartitionSpec(*(RULES[name] for name in axes))


def shardings(boxed, mesh):
  """The layout of a tree of weights declared with logical axes.

  Args:
    boxed: what `jax.eval_shape(model.init, ...)` returns.
  """

  def one(names, leaf):
    where = spec(names)
    for name, axes, size in zip(names, where, leaf.shape, strict=True):
      if size % (count := ways(mesh, axes)):
        raise MeshError(
          f'config.mesh.{axes}: {size} numbers of axis {name!r} do not divide over '
          f'{count} devices; the nearest that does is {math.gcd(size, count)}'
        )
    return NamedSharding(mesh, where)

  return jax.tree.map(
    one,
    meta.get_partition_spec(boxed),
    meta.unbox(boxed),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh) -> NamedSharding:
  """The first axis over the mesh axes of 'batch', the others whole."""
  return NamedSharding(mesh, spec(('batch',)))


def put_batch(batch, mesh):
  """Host arrays with a leading batch axis -> device arrays split over the mesh.

  Under several processes each passes its own part of the batch (`rows_of_this_host`).
  """
  layout = by_batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, layout)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(layout, np.asarray(x)), batch
  )


def put(tree, layout):
  """Host arrays, the same on every host, or arrays of the mesh -> laid out as said.

  Args:
    layout: a tree of shardings, or a prefix of one.
  """

  def one(x, where):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(one(jax.random.key_data(x), where))
    if where.is_fully_addressable:
      return jax.device_put(x, where)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.jit(lambda x: x, out_shardings=where)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  return jax.tree.map(
    lambda where, part: jax.tree.map(lambda x: one(x, where), part), layout, tree
  )


def to_host(tree):
  """Device arrays -> whole numpy arrays on every host; all hosts must call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def rows_of_this_host(size: int, mesh) -> slice:
  """Which rows of a batch the devices of this process hold."""
  held = by_batch(mesh).addressable_devices_indices_map((size,)).values()
  bounds = [index[0].indices(size) for index in held if index is not None]
  return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


def layout_of(tree):
  """The shardings of a tree of arrays, or of shapes that carry one."""
  return jax.tree.map(lambda x: x.sharding, tree)


def abstract(tree, layout):
  """Shapes that carry a layout: what a program is compiled from without its data."""
  return jax.tree.map(
    lambda where, part: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), part
    ),
    layout,
    tree,
  )


def bytes_per_device(tree) -> float:
  """Of arrays, or shapes, that carry a layout; the largest share of a device."""

  def one(leaf):
    shape = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * trees.itemsize(leaf.dtype)

  return sum(one(leaf) for leaf in jax.tree.leaves(tree))


def table(tree) -> list[tuple[str, tuple[int, ...], str, str, float]]:
  """(leaf, shape, dtype, spec, bytes per device) of every leaf that has a layout."""

  def row(name: str, leaf: Any):
    axes = ', '.join(str(axis) for axis in leaf.sharding.spec)
    size = bytes_per_device(leaf)
    return name, tuple(leaf.shape), str(leaf.dtype), f'({axes})', size

  return [row(name, leaf) for name, leaf in trees.flatten(tree).items()]


def lines(tree) -> list[str]:
  """The table as text, its columns named in the first line."""
  show = lambda *row: '{:<60} {:<24} {:<10} {:<34} {:>16}'.format(*row)
  return [
    show('leaf', 'shape', 'dtype', 'mesh axes', 'bytes a device'),
    *(
      show(name, str(shape), dtype, spec, f'{size:,.0f}')
      for name, shape, dtype, spec, size in table(tree)
    ),
  ]


def gradient_options(mesh) -> dict[str, str | bool] | None:
  """What XLA is told when it compiles a training step for this mesh.

  On a GPU, to use nothing whose sums differ from run to run, as cuDNN's gradient of
  attention does: a resumed run gives the bits of one that was not interrupted.

  On a CPU, not to take YNNPACK's products: with Eigen's a tiny LoRA step takes 0.8
  times as long, while sampling, which keeps YNNPACK, would take 1.9 times as long (by
  `launch.bench tiny`, the second with the option in XLA_FLAGS).
  """
  return _of_platform(mesh.devices.flat[0].platform)


@functools.cache
def _of_platform(platform: str) -> dict[str, str | bool] | None:
  if platform == 'gpu':
    return {
      'xla_gpu_exclude_nondeterministic_ops': True,
      'xla_gpu_enable_triton_gemm': False,  # with the above, not without the device
    }
  if platform != 'cpu':
    return None
  options: dict[str, str | bool] = {'xla_cpu_experimental_ynn_fusion_type': ''}
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
  except Exception:  # an XLA that does not know the setting
    return None
  return options


def decoding_options(mesh) -> dict[str, bool] | None:
  """What XLA is told when it compiles a loop that draws tokens for this mesh.

  On a GPU, to leave products to cuBLAS: in front of its own kernels it would cut the
  weights of a layer out of their stack, and copy them at every step.
  """
  if mesh.devices.flat[0].platform != 'gpu':
    return None
  return {'xla_gpu_enable_triton_gemm': False}


class Program:
  """A phase: a function, where its arguments and results live, and what it consumes.

  Calling it runs it, compiled once a shape; `trace` takes shapes in place of arrays, so
  that a plan compiles what a stage runs. The name becomes that of the XLA module.

  Args:
    name: of the phase, in our language: 'rollout', 'score', 'update', ...
    mesh: what `constrain` means inside.
    inputs: a layout, or a prefix of one, for each argument; None: as the caller has it.
    outputs: the same for the result.
    donate: positions of the arguments whose memory the results take over.
    options: of the compiler; None: its own.
  """

  def __init__(
    self,
    name: str,
    function: Callable,
    mesh,
    inputs: tuple,
    outputs: Any = None,
    donate: tuple[int, ...] = (),
    options: Mapping[str, str | bool] | None = None,
  ):
    @functools.wraps(function)
    def named(*args):
      return function(*args)

    named.__name__ = named.__qualname__ = name
    self.name, self.mesh, self.inputs, self.donate = name, mesh, inputs, donate
    self.jitted = jax.jit(
      named,
      in_shardings=inputs,
      out_shardings=outputs,
      donate_argnums=donate,
      compiler_options=dict(options) if options else None,
    )
    self.called_with: list[tuple] = []  # shapes of the arguments, once a compilation
    self._compiled = 0

  def __call__(self, *args):
    with jax.set_mesh(self.mesh):
      out = self.jitted(*args)
    if (count := self.jitted._cache_size()) > self._compiled:  # type: ignore
      self._compiled = count
      self.called_with.append(jax.tree.map(_shape_of, args))
    return out

  def trace(self, *shapes):
    """The traced program; `.lower().compile()` gives the executable."""
    with jax.set_mesh(self.mesh):
      return self.jitted.trace(*shapes)

  def compile(self, *args) -> jax.stages.Compiled:
    """The executable for arguments like these, which a call then finds made."""
    with jax.set_mesh(self.mesh):
      return self.jitted.lower(*args).compile()

  def compiled(self) -> list[jax.stages.Compiled]:
    """The executables of the shapes seen so far."""
    return [self.compile(*args) for args in self.called_with]


def _shape_of(x):
  placed = x.sharding if getattr(x, 'committed', False) else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)


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
