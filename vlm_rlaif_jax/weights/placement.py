"""Host weights on the devices: their shardings, dtypes and quantization."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import blocks, int4, nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.core.quant.product import Leaf
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.models import LINEARS, VlmConfig
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.weights.network_shapes import abstract
from vlm_rlaif_jax.weights.stacked import filled, is_leaf, layers_of


def stored_dtype(name: str, dtype) -> str:
  """Norms stay in float32; everything else of a frozen base is in `dtype`."""
  return 'float32' if 'scale' in name and 'norm' in name else dtype


def on_device(
  params: dict, cfg: VlmConfig, mesh, dtype=None, held: QuantConfig | None = None
) -> dict:
  """Host weights -> device, laid out by the rules, in `dtype`; norms in float32.

  Args:
    held: how the linears of the decoder are to be held; None: as they are.
  """
  where = sharding.shardings(abstract(cfg)['params'], mesh)
  layout: dict[str, Any] = trees.flatten(where)
  dtype = cfg.dtype if dtype is None else dtype
  if held is not None:
    check_quant(params, held)

  def put(name, value):
    value = value if is_leaf(value) else np.asarray(value)
    if held is not None and is_quantized(name):
      value = quantized(value, held, dtype)
    if isinstance(value, Leaf):
      return sharding.put(value, leaf_layout(value, layout[name]))
    return sharding.put(value.astype(stored_dtype(name, dtype)), layout[name])

  flat = trees.flatten(params, is_leaf=is_leaf)
  return trees.unflatten({name: put(name, value) for name, value in flat.items()})


def is_quantized(name: str) -> bool:
  """Whether a weight is one of the decoder's linears: not head, embeddings or CLIP."""
  pieces = name.split('/')
  return pieces[:2] == ['llama', 'layers'] and pieces[2] in LINEARS and len(pieces) == 4


def check_quant(params: dict, held: QuantConfig, field: str = 'quant') -> None:
  """Refuses to hold a base that is in NF4 already in another way than the settings'."""
  nf4_files = any(isinstance(x, Nf4) for x in jax.tree.leaves(params, is_leaf=is_leaf))
  if nf4_files and held.residency not in ('nf4', 'nf4_bf16'):
    raise ConfigError(
      f'config.{field}.residency: {held.residency!r} needs a base in 16 bits, this one '
      "is in NF4; choose 'nf4', or 'nf4_bf16' to have it unpacked"
    )


def quantized(value: np.ndarray | Nf4, held: QuantConfig, dtype) -> np.ndarray | Leaf:
  """Stacked matrices `[L, out, in]` in the form that the settings name.

  What is in NF4 already stays as it was made, whatever `double` and `through` say.
  """
  if isinstance(value, Nf4):
    return value if held.residency == 'nf4' else filled(value, layers_of(value), dtype)
  if held.residency == 'native':
    return value
  if held.residency == 'int4':
    return int4.quantize(value, held.group)
  quantize = lambda w: nf4.quantize(w, held.double, held.through)
  if held.residency == 'nf4':
    return quantize(value)
  # a layer at a time: float32 copies stay small
  return filled(value, (nf4.dequantize(quantize(w), dtype) for w in value), dtype)


def leaf_layout(leaf: Leaf, whole: NamedSharding):
  """The layout of a quantized leaf from that of the stacked `[L, out, in]`.

  Codes and scales are `[L, in, out]`. Where the input axis does not divide into whole
  pairs of blocks, the output axis is split over its devices too (`down` of 7B over 4 or
  8: 86 pairs); matrices that are held as one row stay whole.
  """
  layer, out, inp = whole.spec
  mesh = whole.mesh
  ways = lambda axes: sharding.ways(mesh, axes)
  if blocks.is_flat(leaf.shape, leaf.block):
    layer = out = inp = None
  elif leaf.shape[1] % (2 * leaf.block * ways(inp)):
    both = tuple(axes for axes in (out, inp) if axes)
    out = both if leaf.shape[0] % ways(both) == 0 else out
    inp = None
  wide, small = PartitionSpec(layer, inp, out), PartitionSpec(layer)
  return jax.tree.map(
    lambda x: NamedSharding(mesh, wide if x.ndim == 3 else small), leaf
  )


def base_summary(params, held: QuantConfig) -> dict:
  """What a summary says of a base: its residency and its bytes, those of linears too.

  Bytes of the whole arrays; a device has a share of what is sharded.
  """
  parts = trees.flatten(params)
  linears = [
    x for name, x in parts.items() if '/layers/' in name and '_norm/' not in name
  ]
  return {
    'residency': held.residency,
    'bytes': trees.nbytes(params),
    'linear_bytes': trees.nbytes(linears),
  }
