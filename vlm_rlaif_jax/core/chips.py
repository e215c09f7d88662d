"""Facts of chips: memory, peak rates, how each names itself; in `devices/*.json`."""

import json
import pathlib

import jax

FOLDER = pathlib.Path(__file__).parent / 'devices'


def known() -> dict[str, dict]:
  """Name -> facts; bytes, bf16 operations a second, bytes a second."""
  return {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob('*.json'))
  }


def peak_flops() -> float:
  """Of all devices of this run together; 0 where the chip is not known."""
  kind = jax.devices()[0].device_kind
  fitting = [
    (len(prefix), facts['flops'])
    for facts in known().values()
    for prefix in facts['kinds']
    if kind.startswith(prefix)
  ]
  return max(fitting)[1] * jax.device_count() if fitting else 0.0
