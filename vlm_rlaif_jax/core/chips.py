"""Reads facts of chips from `devices/*.json`: memory, peak rates, their own names."""

import json
import pathlib

import jax

FOLDER = pathlib.Path(__file__).parent / 'devices'


def table() -> dict[str, dict]:
  """Returns name -> facts: bytes, bf16 operations a second, bytes a second."""
  return {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob('*.json'))
  }


def memory() -> int:
  """Returns the memory of one device of this run in bytes; 0 if it is not known."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit', 0)
  return limit or facts_of(device.device_kind).get('memory', 0)


def peak_flops() -> float:
  """Returns the peak operations a second of all devices; 0 if the chip is not known."""
  facts = facts_of(jax.devices()[0].device_kind)
  return facts.get('flops', 0.0) * jax.device_count()


def facts_of(kind: str) -> dict:
  """Returns the facts of a chip by the name that it gives itself; {} if unknown."""
  return table().get(name_of(kind), {})


def name_of(kind: str) -> str:
  """Returns the name of a chip like 'NVIDIA H200', 'h200'; '' if it is not known."""
  fitting = [
    (len(prefix), name)
    for name, facts in table().items()
    for prefix in facts['kinds']
    if kind.startswith(prefix)
  ]
  return max(fitting)[1] if fitting else ''
