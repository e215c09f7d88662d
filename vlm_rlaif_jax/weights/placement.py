"""Host weights on the devices: their shardings, dtypes and quantization."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import blocks, int4, nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.core.quant.product import Leaf
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.models import LINEARS, VlmConfig
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.weights.network_shapes import abstract
from vlm_rlaif_jax.weights.stacked import is_leaf, iterate_layers, stack_layers


def stored_dtype(name: str, dtype: str) -> str:
  """Returns the dtype of a weight of a frozen base: norms stay in float32."""
  return 'float32' if 'scale' in name and 'norm' in name else dtype


def on_device(
  params: dict[str, Any],
  cfg: VlmConfig,
  mesh: Mesh,
  dtype: str | None = None,
  quant: QuantConfig | None = None,
) -> dict[str, Any]:
  """Returns host weights on the devices, sharded by the rules; norms in float32.

  Args:
    dtype: of the other weights; None: that of the config.
    quant: how the linears of the decoder are quantized; None: they stay as they are.
  """
  where = sharding.shardings(abstract(cfg)['params'], mesh)
  shardings: dict[str, Any] = trees.flatten(where)
  to = cfg.dtype if dtype is None else dtype
  if quant is not None:
    check_quant(params, quant)

  def put(name: str, value: Any) -> Any:
    value = value if is_leaf(value) else np.asarray(value)
    if quant is not None and is_quantized(name):
      value = quantize(value, quant, to)
    if isinstance(value, Leaf):
      return sharding.put(value, leaf_sharding(value, shardings[name]))
    return sharding.put(value.astype(stored_dtype(name, to)), shardings[name])

  flat = trees.flatten(params, is_leaf=is_leaf)
  return trees.unflatten({name: put(name, value) for name, value in flat.items()})


def is_quantized(name: str) -> bool:
  """Whether a weight is one of the decoder's linears: not head, embeddings or CLIP."""
  pieces = name.split('/')
  return pieces[:2] == ['llama', 'layers'] and pieces[2] in LINEARS and len(pieces) == 4


def check_quant(
  params: dict[str, Any], quant: QuantConfig, field: str = 'quant'
) -> None:
  """Raises ConfigError if a base is in NF4 already and the settings want another form.

  Args:
    field: of the settings, in the error.
  """
  in_nf4 = any(isinstance(x, Nf4) for x in jax.tree.leaves(params, is_leaf=is_leaf))
  if in_nf4 and quant.residency not in ('nf4', 'nf4_bf16'):
    raise ConfigError(
      f'config.{field}.residency: {quant.residency!r} needs a base in 16 bits, this '
      "one is in NF4; choose 'nf4', or 'nf4_bf16' to have it unpacked"
    )


def quantize(
  value: np.ndarray | Nf4, quant: QuantConfig, dtype: str
) -> np.ndarray | Leaf:
  """Returns stacked matrices `[L, out, in]` in the form that the settings name.

  What is in NF4 already keeps its codes, whatever `double` and `through` are.
  """
  if isinstance(value, Nf4):
    if quant.residency == 'nf4':
      return value
    return stack_layers(value, iterate_layers(value), dtype)
  if quant.residency == 'native':
    return value
  if quant.residency == 'int4':
    return int4.quantize(value, quant.group)
  if quant.residency == 'nf4':
    return nf4.quantize(value, quant.double, quant.through)
  # a layer at a time: float32 copies stay small
  layers = (
    nf4.dequantize(nf4.quantize(w, quant.double, quant.through), dtype) for w in value
  )
  return stack_layers(value, layers, dtype)


def leaf_sharding(leaf: Leaf, matrix: NamedSharding) -> Leaf:
  """Returns the shardings of a quantized leaf from that of the stacked `[L, out, in]`.

  Codes and scales are `[L, in, out]`. Where the input axis does not divide into whole
  pairs of blocks, the output axis is split over its devices too (`down` of 7B over 4 or
  8: 86 pairs); matrices that are stored as one row are replicated.
  """
  layer, out, inp = matrix.spec
  mesh = matrix.mesh
  if blocks.is_flat(leaf.shape, leaf.block):
    layer = out = inp = None
  elif leaf.shape[1] % (2 * leaf.block * sharding.ways(mesh, inp)):
    both = tuple(axes for axes in (out, inp) if axes)
    out = both if leaf.shape[0] % sharding.ways(mesh, both) == 0 else out
    inp = None
  wide, small = PartitionSpec(layer, inp, out), PartitionSpec(layer)
  return jax.tree.map(
    lambda x: NamedSharding(mesh, wide if x.ndim == 3 else small), leaf
  )


def base_summary(params: Any, quant: QuantConfig) -> dict[str, Any]:
  """Returns the residency of a base and its bytes, in total and of its linears.

  Bytes are those of the arrays; a device has a share of what is sharded.
  """
  parts = trees.flatten(params)
  linears = [
    x for name, x in parts.items() if '/layers/' in name and '_norm/' not in name
  ]
  return {
    'residency': quant.residency,
    'bytes': trees.nbytes(params),
    'linear_bytes': trees.nbytes(linears),
  }
