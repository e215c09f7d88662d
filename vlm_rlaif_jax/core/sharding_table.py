"""Lists where every leaf of a tree lies, and how many bytes it takes there."""

from typing import Any

from vlm_rlaif_jax.core import sharding, trees


def table(tree: Any) -> list[tuple[str, tuple[int, ...], str, str, float]]:
  """Returns (leaf, shape, dtype, spec, bytes per device) of every leaf."""

  def row(name: str, leaf: Any) -> tuple:
    axes = ', '.join(str(axis) for axis in leaf.sharding.spec)
    size = sharding.bytes_per_device(leaf)
    return name, tuple(leaf.shape), str(leaf.dtype), f'({axes})', size

  return [row(name, leaf) for name, leaf in trees.flatten(tree).items()]


def lines(tree: Any) -> list[str]:
  """Returns the table as text, its columns named in the first line."""
  columns = '{:<60} {:<24} {:<10} {:<34} {:>16}'.format
  return [
    columns('leaf', 'shape', 'dtype', 'mesh axes', 'bytes a device'),
    *(
      columns(name, str(shape), dtype, spec, f'{size:,.0f}')
      for name, shape, dtype, spec, size in table(tree)
    ),
  ]
