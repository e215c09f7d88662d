"""What a run says in the terminal: one line a stage, and a table at the end."""

import pathlib
from typing import Any

from vlm_rlaif_jax.core import hosts, sharding


def say(text: str) -> None:
  if hosts.is_first():
    print(text, flush=True)


def write_sharding_table(path: pathlib.Path, kept: dict[str, Any]) -> None:
  """Says what lies on each device from the first step on; leaf by leaf, to a file.

  Args:
    kept: title -> arrays.
  """
  if hosts.is_first():
    path.write_text('\n'.join(sharding.lines(kept)) + '\n')
  sizes = {title: sharding.bytes_per_device(tree) for title, tree in kept.items()}
  shown = ', '.join(f'{title} {size_text(size)}' for title, size in sizes.items())
  say(f'  {size_text(sum(sizes.values()))} a device: {shown}; every leaf: {path}')


def size_text(count: float) -> str:
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'
