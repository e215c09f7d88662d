"""Trees of arrays by leaf name: flatten, rebuild, compare, fingerprint."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree, separator: str = '/', is_leaf=None) -> dict[str, Any]:
  """A nested dict -> 'a/b/c' -> leaf, in sorted order.

  Args:
    is_leaf: what else is not taken apart, as in `jax.tree.leaves`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
  named = {
    separator.join(str(getattr(k, 'key', getattr(k, 'name', k))) for k in path): leaf
    for path, leaf in leaves
  }
  return dict(sorted(named.items()))


def unflatten(flat: dict, separator: str = '/') -> dict:
  """'a/b/c' -> leaf, back to nested dicts."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split(separator)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def mismatches(found: dict, expected: dict) -> list[str]:
  """What differs between two flat trees by name and shape, in words; [] if nothing."""
  problems = [
    f'missing {name} {expected[name].shape}' for name in expected if name not in found
  ]
  problems += [
    f'left over {name} {found[name].shape}' for name in found if name not in expected
  ]
  problems += [
    f'{name} has shape {tuple(found[name].shape)}, expected '
    f'{tuple(expected[name].shape)}'
    for name in found
    if name in expected and tuple(found[name].shape) != tuple(expected[name].shape)
  ]
  return problems


def size(tree) -> int:
  """Number of elements."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def itemsize(dtype) -> float:
  """Bytes an element takes on a device: half a byte for the 4-bit types."""
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return jax.dtypes.itemsize_bits(dtype) / 8


def nbytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def fingerprint(tree) -> str:
  """Hash of names, shapes, dtypes and bytes; the same for equal trees, anywhere."""
  digest = hashlib.sha256()
  for name, leaf in flatten(tree).items():
    value = np.ascontiguousarray(np.asarray(leaf))
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()[:16]


def cast(tree, dtype):
  """Floating leaves to another dtype; the others as they are."""
  return jax.tree.map(
    lambda x: (
      x.astype(dtype) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x
    ),
    tree,
  )
