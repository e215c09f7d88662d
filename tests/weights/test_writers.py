"""Values that cannot be written."""

import shutil

import numpy as np

from tests.weights.damage import _has, edit, refused, shards
from vlm_rlaif_jax.weights.conversion import Request


def test_values_that_are_not_finite(folder):
  """Found while writing: what was written is taken away again."""
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  broken = np.full(16, np.nan, np.float32)
  edit(path, lambda t: {**t, 'model.norm.weight': broken})
  refused(folder, 'llama/final_norm/scale: has values that are not finite')


def test_float16_overflow(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  path = next(f for f in shards(folder) if _has(f, 'lm_head'))
  edit(path, lambda t: {**t, 'lm_head.weight': np.full((64, 16), 1e5, np.float32)})
  refused(folder, 'not finite as float16', request=Request(dtype='float16'))
