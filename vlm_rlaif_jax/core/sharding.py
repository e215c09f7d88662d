"""Shards arrays over one mesh by one table of rules, `RULES`.

Weights carry logical axis names from where they are declared (`nn/layers.py`); here the
names become axes of the mesh `('data', 'fsdp', 'tensor')`. Axis types are Auto: the
compiler propagates layouts from the arguments of `jax.jit` (which was pjit).
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings import sections
from vlm_rlaif_jax.settings.build import UserError

AXES = ('data', 'fsdp', 'tensor')
CUBLAS = {'xla_gpu_enable_triton_gemm': False}

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


def make_mesh(
  settings: sections.MeshConfig, devices: Iterable[Any] | None = None
) -> Mesh:
  """Returns the mesh of a run; a size of -1 takes the remaining devices."""
  devices = list(jax.devices() if devices is None else devices)
  sizes = [settings.data, settings.fsdp, settings.tensor]
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % fixed == 0:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if math.prod(sizes) != len(devices):
    shape = ' x '.join(f'{n}={s}' for n, s in zip(AXES, sizes, strict=True))
    raise MeshError(
      f'config.mesh: {shape} does not make {len(devices)} devices; for instance '
      f'data=-1, fsdp={math.gcd(fixed, len(devices))}, tensor=1 does'
    )
  return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def data_mesh(devices: Iterable[Any]) -> Mesh:
  """Returns a mesh of all devices along `data`, for work that each does by itself."""
  return make_mesh(sections.MeshConfig(), list(devices))


def spec(axes: Iterable[str | None]) -> PartitionSpec:
  """Returns the mesh axes of logical axis names, by `RULES`."""
  unknown = [name for name in axes if name not in RULES]
  if unknown:
    raise MeshError(f'logical axis {unknown[0]!r} is not in the rule table')
  return PartitionSpec(*(RULES[name] for name in axes))


def shardings(boxed: Any, mesh: Mesh) -> Any:
  """Returns the shardings of a tree of weights declared with logical axes.

  Args:
    boxed: what `jax.eval_shape(model.init, ...)` returns.
  """

  def sharding_of(names: PartitionSpec, leaf: Any) -> NamedSharding:
    mesh_axes = spec(names)
    for name, axes, size in zip(names, mesh_axes, leaf.shape, strict=True):
      if size % (count := ways(mesh, axes)):
        raise MeshError(
          f'config.mesh.{axes}: {size} numbers of axis {name!r} do not divide over '
          f'{count} devices; the nearest that does is {math.gcd(size, count)}'
        )
    return NamedSharding(mesh, mesh_axes)

  return jax.tree.map(
    sharding_of,
    meta.get_partition_spec(boxed),
    meta.unbox(boxed),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device has in full."""
  return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over the mesh axes of 'batch'."""
  return NamedSharding(mesh, spec(('batch',)))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts host arrays with a leading batch axis on the devices, split over the mesh.

  Under several processes each passes its own part of the batch (`rows_of_this_host`).
  """
  layout = by_batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, layout)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(layout, np.asarray(x)), batch
  )


def put(tree: Any, layout: Any) -> Any:
  """Returns host arrays, equal on every host, or device arrays with given shardings.

  Args:
    layout: a tree of shardings, or a prefix of one.
  """

  def put_leaf(x: Any, target: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put_leaf(jax.random.key_data(x), target))
    if target.is_fully_addressable:
      return jax.device_put(x, target)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.jit(lambda x: x, out_shardings=target)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, target, lambda index: x[index])

  return jax.tree.map(
    lambda target, part: jax.tree.map(lambda x: put_leaf(x, target), part),
    layout,
    tree,
  )


def to_host(tree: Any) -> Any:
  """Returns full numpy arrays on every host; all hosts must call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def rows_of_this_host(size: int, mesh: Mesh) -> slice:
  """Returns the rows of a batch that the devices of this process have.

  Raises:
    MeshError: between them are rows of another process, which would be read twice.
  """
  indices = by_batch(mesh).addressable_devices_indices_map((size,)).values()
  bounds = [index[0].indices(size) for index in indices if index is not None]
  return one_slice({(start, stop) for start, stop, _ in bounds})


def one_slice(bounds: Collection[tuple[int, int]]) -> slice:
  """Returns the rows of one process from the (start, stop) of its devices.

  Raises:
    MeshError: there are gaps between them.
  """
  rows = slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))
  if sum(stop - start for start, stop in bounds) != rows.stop - rows.start:
    raise MeshError(
      f'config.mesh: rows {sorted(bounds)} of a batch are on the devices of process '
      f'{jax.process_index()}, and must follow one another: the devices of a process '
      'have to be neighbors in the mesh'
    )
  return rows


def layout_of(tree: Any) -> Any:
  """Returns the shardings of a tree of arrays, or of shapes that carry one."""
  return jax.tree.map(lambda x: x.sharding, tree)


def abstract(tree: Any, layout: Any) -> Any:
  """Returns shapes with shardings, from which a program is compiled without data."""
  return jax.tree.map(
    lambda sharding, part: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
    ),
    layout,
    tree,
  )


def bytes_per_device(tree: Any) -> float:
  """Returns the bytes that arrays, or shapes with shardings, take on one device."""

  def leaf_bytes(leaf: Any) -> float:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * trees.itemsize(leaf.dtype)

  return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def gradient_options(mesh: Mesh) -> dict[str, str | bool] | None:
  """Returns options of XLA for a training step on this mesh.

  On a GPU they exclude operations whose sums differ from run to run, such as cuDNN's
  gradient of attention, so that a resumed run gives the bits of an uninterrupted one.

  On a CPU they exclude YNNPACK's products: with Eigen's, a tiny LoRA step takes 0.8
  times as long; sampling would take 1.9 times as long (both by `launch.bench tiny`).
  """
  return _of_platform(mesh.devices.flat[0].platform)


@functools.cache
def _of_platform(platform: str) -> dict[str, str | bool] | None:
  """Returns the options of a platform, if this version of XLA has them."""
  if platform == 'gpu':
    # Without a device to compile on, XLA accepts the first only with the second.
    return {'xla_gpu_exclude_nondeterministic_ops': True, **CUBLAS}
  if platform != 'cpu':
    return None
  options: dict[str, str | bool] = {'xla_cpu_experimental_ynn_fusion_type': ''}
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
  except Exception:  # an XLA that does not know the setting
    return None
  return options


def decoding_options(mesh: Mesh) -> Mapping[str, str | bool] | None:
  """Returns options of XLA for a loop that draws tokens on this mesh.

  On a GPU they leave products to cuBLAS: for its own kernels, XLA would slice the
  weights of a layer out of their stack, and copy them at every step.
  """
  return CUBLAS if mesh.devices.flat[0].platform == 'gpu' else None


class Program:
  """A function with the shardings of its arguments and results, compiled once a shape.

  `trace` takes shapes in place of arrays, so that a plan compiles what a stage runs.
  The name becomes that of the XLA module.

  Args:
    name: of the phase: 'rollout', 'score', 'update', ...
    mesh: of `constrain` inside the function.
    inputs: shardings, or a prefix of them, for each argument; None: the caller's.
    outputs: the same for the result.
    donate: positions of the arguments whose memory the results take over.
    options: of the compiler; None: its defaults.
  """

  def __init__(
    self,
    name: str,
    function: Callable,
    mesh: Mesh,
    inputs: tuple,
    outputs: Any = None,
    donate: tuple[int, ...] = (),
    options: Mapping[str, str | bool] | None = None,
  ):
    @functools.wraps(function)
    def named(*args: Any) -> Any:
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

  def __call__(self, *args: Any) -> Any:
    with jax.set_mesh(self.mesh):
      out = self.jitted(*args)
    if (count := self.jitted._cache_size()) > self._compiled:  # type: ignore
      self._compiled = count
      self.called_with.append(jax.tree.map(_shape_of, args))
    return out

  def trace(self, *shapes: Any) -> Any:
    """Returns the traced program; `.lower().compile()` makes the executable."""
    with jax.set_mesh(self.mesh):
      return self.jitted.trace(*shapes)

  def compile(self, *args: Any) -> jax.stages.Compiled:
    """Returns the executable for such arguments; later calls reuse it."""
    with jax.set_mesh(self.mesh):
      return self.jitted.lower(*args).compile()

  def compiled(self) -> list[jax.stages.Compiled]:
    """Returns the executables of all shapes so far."""
    return [self.compile(*args) for args in self.called_with]


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape of an argument, with its sharding if that is committed."""
  sharding = x.sharding if getattr(x, 'committed', False) else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def ways(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
  """Returns the number of devices over which mesh axes split an array."""
  names = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(mesh.shape[name] for name in names)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """Returns the number of devices over which a batch is split."""
  return ways(mesh, RULES['batch'])


def check_batch(size: int, mesh: Mesh, field: str) -> None:
  """Raises MeshError for a batch that does not divide over the devices."""
  shards = batch_shards(mesh)
  if size % shards:
    raise MeshError(
      f'{field}: {size} does not divide over the {shards} devices of data x fsdp; the '
      f'nearest that does is {max(shards, round(size / shards) * shards)}'
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains the sharding of an activation by logical names, inside of a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes))
