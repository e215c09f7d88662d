"""Handles trees of arrays by leaf name: flatten, rebuild, compare, fingerprint."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flatten(
  tree: Any, separator: str = '/', is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
  """Returns a nested dict as 'a/b/c' -> leaf, in sorted order.

  Args:
    is_leaf: which nodes are leaves, too, as in `jax.tree.leaves`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
  named = {
    separator.join(str(getattr(k, 'key', getattr(k, 'name', k))) for k in path): leaf
    for path, leaf in leaves
  }
  return dict(sorted(named.items()))


def unflatten(flat: dict, separator: str = '/') -> dict:
  """Returns 'a/b/c' -> leaf as nested dicts."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split(separator)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def mismatches(actual: dict, expected: dict) -> list[str]:
  """Returns the differences of two flat trees by name and shape, a line each."""
  problems = [
    f'missing {name} {expected[name].shape}' for name in expected if name not in actual
  ]
  problems += [
    f'left over {name} {actual[name].shape}' for name in actual if name not in expected
  ]
  problems += [
    f'{name} has shape {tuple(actual[name].shape)}, expected '
    f'{tuple(expected[name].shape)}'
    for name in actual
    if name in expected and tuple(actual[name].shape) != tuple(expected[name].shape)
  ]
  return problems


def size(tree: Any) -> int:
  """Returns the number of elements."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def itemsize(dtype: Any) -> float:
  """Returns the bytes of an element on a device: half a byte for the 4-bit types."""
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return jax.dtypes.itemsize_bits(dtype) / 8


def nbytes(tree: Any) -> int:
  """Returns the bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> str:
  """Returns a hash of names, shapes, dtypes and bytes; equal trees have equal ones."""
  digest = hashlib.sha256()
  for name, leaf in flatten(tree).items():
    value = np.ascontiguousarray(np.asarray(leaf))
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()[:16]


def cast(tree: Any, dtype: Any) -> Any:
  """Returns a tree with its floating leaves in another dtype."""
  return jax.tree.map(
    lambda x: (
      x.astype(dtype) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x
    ),
    tree,
  )
