"""Shardings of the trees of a run, of arrays and of abstract shapes (`launch.plan`)."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant.product import Leaf
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.state import TrainState, copy
from vlm_rlaif_jax.weights import network_shapes, placement


def part(cfg: VlmConfig, mesh: Mesh, *names: str) -> dict:
  """Returns the shardings of parts of a base: 'llama', 'tower', 'projector'."""
  layout = sharding.shardings(network_shapes.abstract(cfg)['params'], mesh)
  return {name: layout[name] for name in names}


def adapter(cfg: VlmConfig, lora: LoraConfig, mesh: Mesh) -> Any:
  """Returns the shardings of an adapter."""
  return sharding.shardings(network_shapes.abstract(cfg, lora)['lora'], mesh)


def head(mesh: Mesh) -> heads.ScalarHead:
  """Returns the shardings of a scalar head."""
  replicated: Any = sharding.replicated(mesh)
  return heads.ScalarHead(w=replicated, b=replicated)


def trainable(
  cfg: VlmConfig, lora: LoraConfig, mesh: Mesh, names: Iterable[str]
) -> dict:
  """Returns the shardings of what a stage trains: 'lora', 'projector', 'head'."""
  kinds = {
    'lora': lambda: adapter(cfg, lora, mesh),
    'projector': lambda: part(cfg, mesh, 'projector')['projector'],
    'head': lambda: head(mesh),
  }
  return {name: kinds[name]() for name in names}


def state(
  layout: dict[str, Any],
  optimizer: optax.GradientTransformation,
  shapes: dict[str, Any],
  mesh: Mesh,
) -> Any:
  """Returns the shardings of a training state; moments have those of parameters.

  Args:
    layout: of the trainable tree; shapes: that tree, as arrays or as shapes.
  """
  replicated: Any = sharding.replicated(mesh)
  structure = jax.tree.structure(shapes)

  def like_them(x: Any) -> bool:
    return jax.tree.structure(x) == structure

  moments = jax.eval_shape(lambda p: optim.init_optimizer(optimizer, p), shapes)
  return TrainState(
    step=replicated,
    trainable=layout,
    opt_state=jax.tree.map(
      lambda x: layout if like_them(x) else replicated, moments, is_leaf=like_them
    ),
    key=replicated,
  )


def start(
  values: dict[str, Any],
  layout: dict[str, Any],
  optimizer: optax.GradientTransformation,
  seed: int,
  mesh: Mesh,
) -> TrainState:
  """Returns a fresh training state on the mesh, from trainable values."""
  targets = state(layout, optimizer, values, mesh)
  placed = copy(sharding.put(values, layout))  # the caller's arrays are not consumed

  def build(function: Callable, target: Any, *args: Any) -> Any:
    return jax.jit(function, out_shardings=target)(*args)

  return TrainState(
    step=build(lambda: jnp.int32(0), targets.step),
    trainable=placed,
    opt_state=build(
      lambda p: optim.init_optimizer(optimizer, p), targets.opt_state, placed
    ),
    key=build(lambda: jax.random.key(seed), targets.key),
  )


def abstract_base(
  cfg: VlmConfig, mesh: Mesh, *names: str, quant: QuantConfig | None = None
) -> dict[str, Any]:
  """Returns the shapes of what `placement.on_device` makes of parts of a base.

  Args:
    names: of the parts; quant: how their linears are stored, None: as they are.
  """
  layout: dict[str, Any] = trees.flatten(part(cfg, mesh, *names))
  params = network_shapes.abstract_params(cfg)

  def stored(name: str, leaf: Any) -> Any:
    dtype = placement.stored_dtype(name, cfg.dtype)
    leaf = jax.ShapeDtypeStruct(leaf.shape, dtype)
    packed = (
      quant and quant.residency in ('nf4', 'int4') and placement.is_quantized(name)
    )
    if quant is None or not packed:
      return sharding.abstract(leaf, layout[name])
    pack = functools.partial(placement.quantize, quant=quant, dtype=dtype)
    shapes = jax.eval_shape(pack, leaf)
    assert isinstance(shapes, Leaf)
    return sharding.abstract(shapes, placement.leaf_sharding(shapes, layout[name]))

  leaves = trees.flatten({name: params[name] for name in names})
  return trees.unflatten({name: stored(name, leaf) for name, leaf in leaves.items()})


def abstract_adapter(
  cfg: VlmConfig, lora: LoraConfig, mesh: Mesh, dtype: str = 'float32'
) -> Any:
  """Returns the shapes of an adapter."""
  shapes = network_shapes.abstract_adapter(cfg, lora, dtype)
  return sharding.abstract(shapes, adapter(cfg, lora, mesh))


def abstract_head(cfg: VlmConfig, mesh: Mesh) -> heads.ScalarHead:
  """Returns the shapes of a scalar head."""
  shapes = jax.eval_shape(
    lambda: heads.init_head(jax.random.key(0), cfg.llama.width, 'zero')
  )
  return sharding.abstract(shapes, head(mesh))


def abstract_state(
  values: dict[str, Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns the shapes of a training state, from trainable shapes with shardings."""
  layout = state(sharding.layout_of(values), optimizer, values, mesh)
  shapes = jax.eval_shape(
    lambda p: TrainState(
      step=jnp.int32(0),
      trainable=p,
      opt_state=optim.init_optimizer(optimizer, p),
      key=jax.random.key(0),
    ),
    values,
  )
  return sharding.abstract(shapes, layout)


def rows(mesh: Mesh, tree: Any) -> Any:
  """Returns a batch of shapes whose first axis is split over the devices."""
  return sharding.abstract(tree, sharding.by_batch(mesh))
