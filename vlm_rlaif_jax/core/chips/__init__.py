"""Facts of chips: a JSON file each, with memory, peak rates and the names it goes by.

`memory` is in bytes, `flops` in bf16 operations a second, `bandwidth` (of the memory)
and `link` (to other chips) in bytes a second; a chip's device kind starts with one of
`kinds` and with none of `unlike`, cards of that name with other rates. A part of a card
(MIG) is none of them. `<chip>.txtpb`, if there is one, describes the chip to XLA, which
then compiles for it without one.
"""

import json
import pathlib

import jax

FOLDER = pathlib.Path(__file__).parent


def table() -> dict[str, dict]:
  """Returns the facts of every chip by its name, such as 'h200'."""
  names = sorted(path.stem for path in FOLDER.glob('*.json'))
  return {name: json.loads((FOLDER / f'{name}.json').read_text()) for name in names}


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
  """Returns the facts of a chip by its device kind; {} if it is not known."""
  return table().get(name_of(kind), {})


def name_of(kind: str) -> str:
  """Returns the name of a chip by its device kind; '' if it is not known.

  'NVIDIA H200' -> 'h200'. The longest prefix decides.
  """
  if ' MIG ' in kind:
    return ''
  matches = [
    (len(prefix), name)
    for name, facts in table().items()
    for prefix in facts['kinds']
    if kind.startswith(prefix) and not kind.startswith(tuple(facts.get('unlike', ())))
  ]
  return max(matches)[1] if matches else ''
