"""Adapters merged into matrices: W + alpha / rank B A."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.weights import names
from vlm_rlaif_jax.weights.tensors import Tensor

_CHUNK = 1 << 21  # elements that are merged at a time


@dataclasses.dataclass(frozen=True)
class MergedTensor:
  """W + scale B A, computed when it is read."""

  base: Tensor
  a: np.ndarray
  b: np.ndarray
  scale: float

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  @property
  def location(self) -> tuple[str, int]:
    return self.base.location

  def read(self) -> np.ndarray:
    return merge_matrix(self.base.read(), self.a, self.b, self.scale)


def merge_matrix(
  w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
) -> np.ndarray:
  """Returns W + scale B A of one layer, in float64 and then in the dtype of W."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  out = np.empty_like(w)
  step = max(1, _CHUNK // w.shape[1])
  for first in range(0, w.shape[0], step):  # some outputs at a time: copies stay small
    rows = slice(first, first + step)
    out[rows] = (w[rows].astype(np.float64) + scale * (b[rows] @ a)).astype(w.dtype)
  return out


def merge_adapter(
  tensors: Mapping[str, Tensor], flat: Mapping[str, np.ndarray], lora: LoraConfig
) -> dict[str, Tensor]:
  """Returns the tensors of a network with an adapter merged into them.

  Args:
    tensors: by neutral name.
    flat: `llama/layers/q/a` `[L, rank, in]` and so on, that fits the network.
  """
  out = dict(tensors)
  scale = lora.alpha / lora.rank
  for linear, module in names.MODULES.items():
    if f'llama/layers/{linear}/a' not in flat:
      continue
    a, b = (flat[f'llama/layers/{linear}/{side}'] for side in 'ab')
    for layer in range(a.shape[0]):
      name = f'model.layers.{layer}.{module}.weight'
      out[name] = MergedTensor(out[name], a[layer], b[layer], scale)
  return out
