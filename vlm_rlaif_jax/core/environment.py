"""What a stage ran on, for its summary: when, on which devices, with which versions."""

import datetime
import importlib.metadata
import platform
from typing import Any

import jax

from vlm_rlaif_jax.version import __version__

PACKAGES = ('jax', 'flax', 'optax')  # whose versions decide bits


def record() -> dict[str, Any]:
  """Returns date (UTC), devices, processes and versions, as JSON holds them."""
  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  return {
    'date': f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
    'devices': f'{len(devices)} x {", ".join(kinds)}',
    'processes': jax.process_count(),
    'versions': {
      'vlm-rlaif-jax': __version__,
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }
