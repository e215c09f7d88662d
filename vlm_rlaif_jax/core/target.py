"""Names the chip that the program being traced is for.

Functions that are traced choose their implementation by it, statically;
`jax.lax.platform_dependent` would trace, and on some chips compile, every alternative.
"""

from typing import Any

import jax

from vlm_rlaif_jax.core import chips


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu', by the mesh in use; its devices may be abstract."""
  return _device().platform


def chip() -> str:
  """Returns the chip's name in `core/chips`, or '' if it has none there."""
  return chips.name_of(_device().device_kind)


def memory() -> int:
  """Returns the memory of the chip in bytes; 0 if it is not known."""
  return chips.facts_of(_device().device_kind).get('memory', 0) or chips.memory()


def _device() -> Any:
  mesh = jax.sharding.get_abstract_mesh()
  return getattr(mesh, 'abstract_device', None) or jax.devices()[0]
