"""Where every tree of a run lives on the mesh, for weights that exist and for weights
that are only shapes yet (`launch.plan`)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant.product import Leaf
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.train.state import TrainState, copy
from vlm_rlaif_jax.weights import network_shapes, placement


def part(cfg: VlmConfig, mesh, *names: str) -> dict:
  """Of parts of a base: 'llama', 'tower', 'projector'."""
  layout = sharding.shardings(network_shapes.abstract(cfg)['params'], mesh)
  return {name: layout[name] for name in names}


def adapter(cfg: VlmConfig, lora: LoraConfig, mesh):
  return sharding.shardings(network_shapes.abstract(cfg, lora)['lora'], mesh)


def head(mesh) -> heads.ScalarHead:
  where: Any = sharding.replicated(mesh)
  return heads.ScalarHead(w=where, b=where)


def trainable(cfg: VlmConfig, lora: LoraConfig, mesh, names) -> dict:
  """Of what a supervised stage trains, some of 'lora', 'projector', 'head'."""
  kinds = {
    'lora': lambda: adapter(cfg, lora, mesh),
    'projector': lambda: part(cfg, mesh, 'projector')['projector'],
    'head': lambda: head(mesh),
  }
  return {name: kinds[name]() for name in names}


def state(layout: dict[str, Any], optimizer, shapes: dict[str, Any], mesh):
  """Of a training state; optimizer moments lie beside their parameters.

  Args:
    layout: of the trainable tree; shapes: that tree, as arrays or as shapes.
  """
  whole: Any = sharding.replicated(mesh)
  structure = jax.tree.structure(shapes)
  like_them = lambda x: jax.tree.structure(x) == structure
  moments = jax.eval_shape(lambda p: optim.init_optimizer(optimizer, p), shapes)
  return TrainState(
    step=whole,
    trainable=layout,
    opt_state=jax.tree.map(
      lambda x: layout if like_them(x) else whole, moments, is_leaf=like_them
    ),
    key=whole,
  )


def start(values, layout, optimizer, seed: int, mesh) -> TrainState:
  """A fresh training state on the mesh, from trainable values and their layout."""
  where = state(layout, optimizer, values, mesh)
  placed = copy(sharding.put(values, layout))  # the caller's arrays are not consumed
  made = lambda function, where, *args: jax.jit(function, out_shardings=where)(*args)
  return TrainState(
    step=made(lambda: jnp.int32(0), where.step),
    trainable=placed,
    opt_state=made(
      lambda p: optim.init_optimizer(optimizer, p), where.opt_state, placed
    ),
    key=made(lambda: jax.random.key(seed), where.key),
  )


def abstract_base(cfg: VlmConfig, mesh, *names: str, quant: QuantConfig | None = None):
  """The frozen leaves of a base as shapes: what `bases.on_device` would make of it."""
  layout: dict[str, Any] = trees.flatten(part(cfg, mesh, *names))
  params = network_shapes.abstract_params(cfg)

  def stored(name, leaf):
    dtype = placement.stored_dtype(name, cfg.dtype)
    leaf = jax.ShapeDtypeStruct(leaf.shape, dtype)
    packed = quant and quant.residency in ('nf4', 'int4') and placement.is_quantized(name)
    if quant is None or not packed:
      return sharding.abstract(leaf, layout[name])
    pack = functools.partial(placement.quantize, quant=quant, dtype=dtype)
    shapes = jax.eval_shape(pack, leaf)
    assert isinstance(shapes, Leaf)
    return sharding.abstract(shapes, placement.leaf_sharding(shapes, layout[name]))

  leaves = trees.flatten({name: params[name] for name in names})
  return trees.unflatten({name: stored(name, leaf) for name, leaf in leaves.items()})


def abstract_adapter(cfg: VlmConfig, lora: LoraConfig, mesh, dtype='float32'):
  shapes = network_shapes.abstract_adapter(cfg, lora, dtype)
  return sharding.abstract(shapes, adapter(cfg, lora, mesh))


def abstract_head(cfg: VlmConfig, mesh) -> heads.ScalarHead:
  shapes = jax.eval_shape(
    lambda: heads.init_head(jax.random.key(0), cfg.llama.width, 'zero')
  )
  return sharding.abstract(shapes, head(mesh))


def abstract_state(values, optimizer, mesh) -> TrainState:
  """A training state as shapes, from trainable shapes that carry a layout."""
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


def rows(mesh, tree):
  """A batch as shapes: the first axis over the devices."""
  return sharding.abstract(tree, sharding.by_batch(mesh))
