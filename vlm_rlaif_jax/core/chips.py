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


def memory() -> int:
  """Bytes that one device of this run can hold; 0 where nobody knows."""
  device = jax.local_devices()[0]
  said = (device.memory_stats() or {}).get('bytes_limit', 0)
  return said or facts_of(device.device_kind).get('memory', 0)


def peak_flops() -> float:
  """Of all devices of this run together; 0 where the chip is not known."""
  facts = facts_of(jax.devices()[0].device_kind)
  return facts.get('flops', 0.0) * jax.device_count()


def facts_of(kind: str) -> dict:
  """Of the chip that calls itself so; {} if none is known to."""
  return known().get(name_of(kind), {})


def name_of(kind: str) -> str:
  """'NVIDIA H200' -> 'h200': whose name is the longest beginning; '' if none is."""
  fitting = [
    (len(prefix), name)
    for name, facts in known().items()
    for prefix in facts['kinds']
    if kind.startswith(prefix)
  ]
  return max(fitting)[1] if fitting else ''
