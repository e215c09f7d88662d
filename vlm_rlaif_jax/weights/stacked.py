"""Stacked matrices of a decoder, in NF4 or not, one layer at a time."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.core.quant.product import Leaf


def is_leaf(x) -> bool:
  return isinstance(x, Leaf)


def layers_of(w) -> Iterator[np.ndarray]:
  """The matrices of a stacked weight, unpacked one at a time, in its own dtype."""
  if not isinstance(w, Nf4):
    yield from np.asarray(w)
    return
  for index in range(w.codes.shape[0]):
    layer = jax.tree.map(lambda x, i=index: np.asarray(x)[i], w)
    yield np.asarray(nf4.dequantize(layer, w.dtype))


def filled(like, layers: Iterable, dtype) -> np.ndarray:
  """`[L, out, in]` of a weight's shape, one layer after the other."""
  count = like.codes.shape[0] if isinstance(like, Nf4) else like.shape[0]
  out = np.empty((count, *like.shape[-2:]), dtype)
  for index, layer in enumerate(layers):
    out[index] = layer
  return out
