"""Random weights in place of a pretrained base: `config.base=random`.

They have every shape and dtype of the real ones, so a rehearsal needs no checkpoint.
"""

import hashlib
import json
import math
import zlib
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights.network_shapes import abstract_params

STDDEV = 0.02
POOL = (1 << 22) + 37  # random numbers, repeated; odd, so that no row repeats another


def params(cfg: VlmConfig) -> dict[str, Any]:
  """Returns random weights of a network on the host, in the dtype of the config.

  Norms are the identity. Matrices that write into the residual stream have deviation
  0.02 / sqrt(2 layers) (Radford et al. 2019) and the others 0.02, so that activations
  stay finite at every depth.
  """
  return fill(abstract_params(cfg), cfg.llama.layers, np.dtype(cfg.dtype))


def fill(shapes: Any, layers: int, dtype: np.dtype) -> dict[str, Any]:
  """Returns random weights of these shapes, as `params` draws them.

  Args:
    layers: of the network, by which the deviation of some falls.
  """
  rng = np.random.default_rng(0)
  pool = rng.standard_normal(POOL, np.float32)
  flat = trees.flatten(shapes)
  return trees.unflatten(
    {name: _leaf(name, leaf, layers, dtype, pool) for name, leaf in flat.items()}
  )


def _leaf(
  name: str,
  leaf: jax.ShapeDtypeStruct,
  layers: int,
  dtype: np.dtype,
  pool: np.ndarray,
) -> np.ndarray:
  pieces = set(name.split('/'))
  if name.endswith('scale'):
    return np.ones(leaf.shape, dtype)
  if name.endswith('bias'):
    return np.zeros(leaf.shape, dtype)
  writes = pieces & {'o', 'down'}
  stddev = STDDEV / math.sqrt(2 * layers) if writes else STDDEV
  start = zlib.crc32(name.encode()) % POOL  # no two matrices are alike
  return np.resize((stddev * np.roll(pool, start)).astype(dtype), leaf.shape)


def fingerprint(cfg: VlmConfig) -> str:
  """Returns what stands for a hash of the weights: one of the network's sizes."""
  text = json.dumps(cfg.identity, sort_keys=True)
  return hashlib.sha256(f'random {text}'.encode()).hexdigest()[:16]
