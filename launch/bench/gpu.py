"""This package and PyTorch on the GPU of this host, item by item, in one run.

  python -m launch.bench gpu --json=gpu.json
  python -m launch.bench gpu --only=attention,decode --minutes=5
  python -m launch.bench gpu --size=tiny             # on a CPU, in five minutes

Every item runs in a process of its own, with a deadline: one that hangs, crashes or
runs out of memory becomes a row of the table and does not end the run. While one runs,
the next loads its packages and waits; it does not touch the card before its turn.
Shapes of `7b` are those of one card of eight in a PPO iteration: 32 answers of 896
tokens after 753 positions. Weights are random, made on the device. The bandwidth and
rate that a row is compared with are measured in the same run, the better of jax and
torch.

PyTorch's side is in `launch.bench.gpu_peer`, ours in `launch.bench.gpu_ours`; how items
and the run talk is in `launch.bench.gpu_process`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import time
from typing import Any

from launch.bench.gpu_process import ItemProcess

OURS, PEER = 'launch.bench.gpu_ours', 'launch.bench.gpu_peer'
MIN_SECONDS = 12.0  # with less time left, no item is started
PACKAGES = (
  'jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12',
  'nvidia-cudnn-cu13', 'nvidia-cublas', 'torch', 'triton', 'transformers', 'peft',
  'bitsandbytes', 'vllm',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Item:
  """What one process measures.

  Attributes:
    module: run with `python -m`, with the item's name and the size as arguments.
    seconds: the deadline on a card.
    needs: packages without which the item is left out, with a row that says so.
  """

  module: str
  seconds: float
  needs: tuple[str, ...] = ()


TORCH = ('torch', 'transformers')
ITEMS = {  # in the order that they run: the most important first
  'ceilings': Item(OURS, 60),
  'attention': Item(OURS, 90),
  'decode_attention': Item(OURS, 90),
  'products': Item(OURS, 60),
  'decode': Item(OURS, 150),
  'update': Item(OURS, 180),
  'gap': Item(OURS, 90),
  'torch': Item(PEER, 60, ('torch',)),
  'peft': Item(PEER, 90, (*TORCH, 'peft')),
  'generate': Item(PEER, 120, TORCH),
  'qlora': Item(PEER, 90, (*TORCH, 'peft', 'bitsandbytes')),
  'rollout': Item(OURS, 150),
  'train': Item(OURS, 180),
  'score': Item(OURS, 120),
  'generate_compiled': Item(PEER, 240, TORCH),
  'vllm': Item(PEER, 240, (*TORCH, 'vllm')),
}
QUARTER = 'generate, from a quarter of its steps'
WORK = ('rows', 'positions')  # figures of a row; equal where the work is the same
RATIOS = (  # label, our row, PyTorch's row
  ('rollout, NF4 / generate', 'rollout', 'generate'),
  ('rollout, NF4 / generate, estimated', 'rollout', QUARTER),
  ('rollout, NF4 / generate, compiled', 'rollout', 'static cache, compiled'),
  ('rollout, NF4 / vLLM', 'rollout', 'vLLM'),
  ('LoRA step, bf16 / peft', 'LoRA step, bf16', 'peft, bf16'),
  ('LoRA step, bf16 / peft, checkpointing', 'LoRA step, bf16', 'peft, checkpointing'),
  ('LoRA step, NF4 / QLoRA', 'LoRA step, NF4', 'QLoRA, NF4'),
)


def gpu(size: str, only: list[str], minutes: float, path: str = '') -> dict[str, Any]:
  """Runs the items, prints the table, and returns all figures.

  Args:
    size: '7b', or 'tiny' for a machine without a card.
    only: names of items; [] for all.
    minutes: for all items together.
    path: a file where the figures are also written after each item; '' for none.
  """
  deadline = time.monotonic() + 60 * minutes
  names = [name for name in ITEMS if not only or name in only]
  figures: dict = {'size': size, 'machine': machine(), 'seconds': {}, 'rows': []}
  processes: dict[str, ItemProcess] = {}
  try:
    for place, name in enumerate(names):
      item, start = ITEMS[name], time.monotonic()
      absent = [p for p in item.needs if importlib.util.find_spec(p) is None]
      if absent:
        rows = [{'row': name, 'error': f'not installed: {", ".join(absent)}'}]
      elif deadline - start < MIN_SECONDS:
        rows = [{'row': name, 'error': 'no time left'}]
      else:
        process = processes.pop(name, None) or ItemProcess(item.module, name, size)
        for later in names[place + 1 : place + 2]:
          processes[later] = ItemProcess(ITEMS[later].module, later, size)
        # Deadlines are for cards: a CPU compiles and runs for as long as it takes.
        left = deadline - time.monotonic()
        rows = process.run(min(item.seconds, left) if size != 'tiny' else left)
      figures['seconds'][name] = time.monotonic() - start
      for row in rows:
        figures['rows'].append({'item': name, **row})
        print(line(figures['rows'][-1], {}), flush=True)
      if path:
        pathlib.Path(path).write_text(json.dumps(figures, indent=1) + '\n')
  finally:
    for process in processes.values():
      process.stop()
  figures['ceilings'] = ceilings(figures['rows'])
  print('\n'.join(table(figures)), flush=True)
  return figures


def machine() -> dict[str, Any]:
  """Returns card, driver and versions, without loading the packages."""
  facts: dict[str, Any] = {
    'python': platform.python_version(),
    'cpus': os.cpu_count(),
  }
  for name in PACKAGES:
    try:
      facts[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  fields = 'name,driver_version,memory.total,clocks.max.sm,power.limit'
  try:
    output = subprocess.run(
      ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader'],
      capture_output=True,
      text=True,
      timeout=20,
    ).stdout
    facts['card'] = output.strip()
  except (OSError, subprocess.TimeoutExpired):
    facts['card'] = 'none'
  return facts


def ceilings(rows: list[dict]) -> dict[str, float]:
  """Returns the most bytes and operations a second of a plain copy and product."""

  def best(unit: str, suffix: str) -> float:
    rates = [
      row[unit] / row['seconds']
      for row in rows
      if row['item'] in ('ceilings', 'torch')
      and unit in row
      and row['row'].endswith(suffix)
    ]
    return max(rates, default=0.0)

  return {'bytes': best('bytes', 'copy'), 'flops': best('flops', 'matmul')}


def line(row: dict, best: dict[str, float]) -> str:
  """Formats a row: milliseconds, rates with their share of the best, other figures."""
  start = f'{row["item"]:<17}{row["row"]:<44}'
  if 'error' in row:
    return f'{start}{row["error"]}'
  cells = [f'{1e3 * row["seconds"]:12.3f} ms' if 'seconds' in row else ' ' * 15]
  for unit, name in (('bytes', 'TB/s'), ('flops', 'TFLOP/s')):
    if unit in row:
      rate = row[unit] / row['seconds']
      share = f' ({rate / best[unit]:.0%})' if best.get(unit) else ''
      cells.append(f'{rate / 1e12:.3g} {name}{share}')
  formatted = {'item', 'row', 'seconds', 'bytes', 'flops'}
  cells += [f'{k} {_short(value)}' for k, value in row.items() if k not in formatted]
  return f'{start}{"  ".join(cells)}'


def _short(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _ratio(ours: dict, peer: dict) -> str:
  """Returns how much longer PyTorch takes; no number where the work is another."""
  work = [tuple(row.get(name) for name in WORK) for row in (ours, peer)]
  if work[0] != work[1]:
    of = ' and '.join(f'{rows} x {positions}' for rows, positions in work)
    return f'not of the same work ({of} positions)'
  return f'{peer["seconds"] / ours["seconds"]:.2f}x'


def table(figures: dict[str, Any]) -> list[str]:
  """Returns the lines of the table of a run."""
  best, rows = figures['ceilings'], figures['rows']
  facts = [f'{name} {value}' for name, value in figures['machine'].items()]
  lines = ['', '; '.join(facts)]
  lines.append(
    f'size {figures["size"]}; copy {best["bytes"] / 1e12:.2f} TB/s, bf16 product '
    f'{best["flops"] / 1e12:.0f} TFLOP/s (shares are of these)'
  )
  lines += [line(row, best) for row in rows]
  by_name = {row['row']: row for row in rows if 'seconds' in row}
  for label, ours, peer in RATIOS:
    if ours in by_name and peer in by_name:
      lines.append(f'{label}: {_ratio(by_name[ours], by_name[peer])}')
  times = ', '.join(f'{name} {s:.0f}' for name, s in figures['seconds'].items())
  return [*lines, f'seconds of items, with their start: {times}']
