"""Lines that a stage prints, on the first host."""

import pathlib
from typing import Any

from vlm_rlaif_jax.core import hosts, sharding, sharding_table


def say(text: str) -> None:
  """Prints a line on the first host."""
  if hosts.is_first():
    print(text, flush=True)


def write_sharding_table(path: pathlib.Path, resident: dict[str, Any]) -> None:
  """Prints the bytes that lie on each device, and writes a table of every leaf.

  Args:
    resident: title -> arrays that are on the devices from the first step on.
  """
  if hosts.is_first():
    path.write_text('\n'.join(sharding_table.lines(resident)) + '\n')
  sizes = {title: sharding.bytes_per_device(tree) for title, tree in resident.items()}
  titles = ', '.join(f'{title} {size_text(size)}' for title, size in sizes.items())
  say(f'  {size_text(sum(sizes.values()))} a device: {titles}; every leaf: {path}')


def size_text(count: float) -> str:
  """Returns a number of bytes in GB or MB."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'
