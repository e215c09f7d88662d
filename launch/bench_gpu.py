"""Ours and PyTorch's on the card that is here, item by item, in one run.

  python -m launch.bench gpu --json=gpu.json
  python -m launch.bench gpu --only=attention,decode --minutes=5
  python -m launch.bench gpu --size=tiny             # on a CPU, in seconds

Every item works in a process of its own, with a deadline: one that hangs, crashes or
runs out of memory is a row of the table and not the end. While one works, the next
loads its packages and waits; nothing of it touches the card before its turn. Shapes of
`7b` are those of one card of eight in a PPO iteration: 32 answers of 896 tokens after
753 positions. Weights are random, made on the device. Bandwidth and rate beside a row
are measured in the same run, the better of jax and torch.

PyTorch's side is in `launch.bench_gpu_peer`, ours in `launch.bench_gpu_ours`.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROW = '@row '  # begins a line of a process's output that is a row
OURS, PEER = 'launch.bench_gpu_ours', 'launch.bench_gpu_peer'
LEAST = 12  # seconds: with less left, no item is begun
LOADING = 120  # seconds that packages may take


@dataclasses.dataclass(frozen=True)
class Item:
  """What one process measures.

  Attributes:
    seconds: its deadline, on a card.
    needs: packages without which it is left out, and named as such.
  """

  module: str
  seconds: float
  needs: tuple[str, ...] = ()


TORCH = ('torch', 'transformers')
ITEMS = {  # in the order that they run: what decides most comes first
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
}
QUARTER = 'generate, from a quarter of its steps'
RATIOS = (  # what, ours, PyTorch's: rows whose seconds are of the same work
  ('rollout, NF4 / generate', 'rollout', 'generate'),
  ('rollout, NF4 / generate, estimated', 'rollout', QUARTER),
  ('rollout, NF4 / generate, compiled', 'rollout', 'static cache, compiled'),
  ('LoRA step, bf16 / peft', 'LoRA step, bf16', 'peft, bf16'),
  ('LoRA step, bf16 / peft, checkpointing', 'LoRA step, bf16', 'peft, checkpointing'),
  ('LoRA step, NF4 / QLoRA', 'LoRA step, NF4', 'QLoRA, NF4'),
)


def gpu(size: str, only: list[str], minutes: float, path: str = '') -> dict:
  """Runs the items, prints the table, returns everything.

  Args:
    size: '7b', or 'tiny' for a machine without a card.
    only: names of items; [] for all.
    path: where the figures are kept after each item, too; '' for nowhere.
  """
  began = time.monotonic()
  names = [name for name in ITEMS if not only or name in only]
  figures: dict = {'size': size, 'machine': machine(), 'seconds': {}, 'rows': []}
  left = lambda: 60 * minutes - (time.monotonic() - began)
  children: dict[str, _Child] = {}
  try:
    for place, name in enumerate(names):
      absent = [p for p in ITEMS[name].needs if importlib.util.find_spec(p) is None]
      clock = time.monotonic()
      if absent:
        rows = [{'row': name, 'error': f'not installed: {", ".join(absent)}'}]
      elif left() < LEAST:
        rows = [{'row': name, 'error': 'no time left'}]
      else:
        child = children.pop(name, None) or _Child(name, size)
        for later in names[place + 1 : place + 2]:
          children[later] = _Child(later, size)
        # The deadlines are a card's: a CPU compiles and works for as long as it takes.
        limit = ITEMS[name].seconds if size != 'tiny' else left()
        rows = child.work(min(limit, left()))
      figures['seconds'][name] = time.monotonic() - clock
      figures['rows'] += [{'item': name, **row} for row in rows]
      for row in rows:
        print(line({'item': name, **row}, {}), flush=True)
      if path:
        pathlib.Path(path).write_text(json.dumps(figures, indent=1) + '\n')
  finally:
    for child in children.values():
      child.end()
  figures['ceilings'] = ceilings(figures['rows'])
  print('\n'.join(table(figures)), flush=True)
  return figures


def machine() -> dict:
  """Card, driver and versions, as far as they are to be had without loading them."""
  import importlib.metadata
  import platform

  names = (
    'jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12',
    'nvidia-cudnn-cu13', 'nvidia-cublas', 'torch', 'triton', 'transformers', 'peft',
    'bitsandbytes',
  )  # fmt: skip
  found = {'python': platform.python_version(), 'cpus': os.cpu_count()}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  try:
    asked = 'name,driver_version,memory.total,clocks.max.sm,power.limit'
    said = subprocess.run(
      ['nvidia-smi', f'--query-gpu={asked}', '--format=csv,noheader'],
      capture_output=True,
      text=True,
      timeout=20,
    ).stdout
    found['card'] = said.strip()
  except (OSError, subprocess.TimeoutExpired):
    found['card'] = 'none'
  return found


class _Child:
  """The process of an item: loads its packages, waits for its turn, works."""

  def __init__(self, name: str, size: str):
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92', **os.environ}
    self._process = subprocess.Popen(
      [sys.executable, '-m', ITEMS[name].module, name, size],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
      start_new_session=True,
    )
    self._name, self._rows = name, []
    self._ready = threading.Event()
    self._thread = threading.Thread(target=self._read, daemon=True)
    self._thread.start()

  def _read(self) -> None:
    assert self._process.stdout
    for said in self._process.stdout:
      if said.startswith(ROW):
        row = json.loads(said.removeprefix(ROW))
        if row:
          self._rows.append(row)
        else:
          self._ready.set()
      else:
        print(said, end='', file=sys.stderr, flush=True)
    self._ready.set()

  def work(self, seconds: float) -> list[dict]:
    """Lets it work for at most so long; the rows that came until then."""
    name = self._name
    if not self._ready.wait(min(LOADING, seconds)):
      self.end()
      return [{'row': name, 'error': 'its packages did not load in time'}]
    try:
      assert self._process.stdin
      self._process.stdin.write('go\n')
      self._process.stdin.close()
      code = self._process.wait(seconds)
    except BrokenPipeError:
      code = self._process.wait()
    except subprocess.TimeoutExpired:
      self.end()
      return [*self._rows, {'row': name, 'error': f'stopped after {seconds:.0f} s'}]
    self._close()
    ended = [] if not code else [{'row': name, 'error': f'ended with {code}'}]
    return [*self._rows, *ended]

  def end(self) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver
      self._process.wait(10)
    self._close()

  def _close(self) -> None:
    self._thread.join(5)
    for pipe in (self._process.stdin, self._process.stdout):
      if pipe:
        with contextlib.suppress(BrokenPipeError):
          pipe.close()


def note(row: str, **figures) -> None:
  """Hands a row to the run: seconds, bytes and flops in it get their rates."""
  print(ROW + json.dumps({'row': row, **figures}), flush=True)


def serve(work: dict) -> None:
  """The whole of an item's process, after its packages are loaded.

  Args:
    work: item -> (size) -> None, which calls `note`.
  """
  name, size = sys.argv[1:3]
  print(ROW + '{}', flush=True)
  if not sys.stdin.readline():
    return  # the run has ended
  attempt(name, lambda: work[name](size))


def attempt(row: str, call) -> None:
  """A call whose failure is a row."""
  import traceback

  try:
    call()
  except Exception as error:
    traceback.print_exc()
    lines = str(error).strip().splitlines() or ['']
    note(row, error=f'{type(error).__name__}: {lines[0][:160]}')


def ceilings(rows: list[dict]) -> dict:
  """Most bytes and operations a second that anything plain reached in this run."""
  plain = [row for row in rows if row['item'] in ('ceilings', 'torch')]
  best = lambda unit, names: max(
    (
      row[unit] / row['seconds']
      for row in plain
      if unit in row and row['row'].endswith(names)
    ),
    default=0.0,
  )
  return {'bytes': best('bytes', 'copy'), 'flops': best('flops', 'matmul')}


def line(row: dict, best: dict) -> str:
  """One row: milliseconds, rates, their share of the best, and what else it says."""
  start = f'{row["item"]:<17}{row["row"]:<44}'
  if 'error' in row:
    return f'{start}{row["error"]}'
  shown = {'item', 'row', 'seconds', 'bytes', 'flops'}
  cells = [f'{1e3 * row["seconds"]:12.3f} ms' if 'seconds' in row else ' ' * 15]
  for unit, name in (('bytes', 'TB/s'), ('flops', 'TFLOP/s')):
    if unit in row:
      rate = row[unit] / row['seconds']
      share = f' ({rate / best[unit]:.0%})' if best.get(unit) else ''
      cells.append(f'{rate / 1e12:.3g} {name}{share}')
  more = [f'{key} {_short(value)}' for key, value in row.items() if key not in shown]
  return f'{start}{"  ".join([*cells, *more])}'


def _short(value) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def table(figures: dict) -> list[str]:
  """The whole run as text."""
  best, rows = figures['ceilings'], figures['rows']
  facts = [f'{name} {value}' for name, value in figures['machine'].items()]
  lines = ['', '; '.join(facts)]
  lines.append(
    f'size {figures["size"]}; copy {best["bytes"] / 1e12:.2f} TB/s, bf16 product '
    f'{best["flops"] / 1e12:.0f} TFLOP/s (shares are of these)'
  )
  lines += [line(row, best) for row in rows]
  seconds = {row['row']: row['seconds'] for row in rows if 'seconds' in row}
  for what, ours, theirs in RATIOS:
    if ours in seconds and theirs in seconds:
      lines.append(f'{what}: {seconds[theirs] / seconds[ours]:.2f}x')
  spent = ', '.join(f'{name} {s:.0f}' for name, s in figures['seconds'].items())
  return [*lines, f'seconds of items, with their start: {spent}']
