"""The chip that the program being traced is for.

What is traced asks here, once and statically: `jax.lax.platform_dependent` would trace,
and for some chips compile, what the others take.
"""

import jax

from vlm_rlaif_jax.core import chips


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh in use, whose devices need not be here."""
  return _device().platform


def chip() -> str:
  """Its name in `core/devices`; '' if it has none there."""
  return chips.name_of(_device().device_kind)


def _device():
  mesh = jax.sharding.get_abstract_mesh()
  return getattr(mesh, 'abstract_device', None) or jax.devices()[0]
