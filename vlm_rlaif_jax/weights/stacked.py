"""Stacked matrices of a decoder, in NF4 or not, one layer at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.core.quant.product import Leaf


def is_leaf(x: Any) -> bool:
  """Whether a node of a tree is a quantized weight, for `jax.tree`."""
  return isinstance(x, Leaf)


def iterate_layers(w: np.ndarray | Nf4) -> Iterator[np.ndarray]:
  """Yields the matrices of a stacked weight, unpacked one at a time, in its dtype."""
  if not isinstance(w, Nf4):
    yield from np.asarray(w)
    return
  for index in range(w.codes.shape[0]):
    layer = jax.tree.map(lambda x, i=index: np.asarray(x)[i], w)
    yield np.asarray(nf4.dequantize(layer, w.dtype))


def stack_layers(
  like: np.ndarray | Nf4, layers: Iterable[Any], dtype: Any
) -> np.ndarray:
  """Returns `[L, out, in]` of the shape of a stacked weight, filled layer by layer."""
  count = like.codes.shape[0] if isinstance(like, Nf4) else like.shape[0]
  out = np.empty((count, *like.shape[-2:]), dtype)
  for index, layer in enumerate(layers):
    out[index] = layer
  return out
