"""What a compiled GPU program launches: kernels, their bytes and operations, loop by
loop, and the least seconds that they take.

    seconds of a kernel = max(bytes / bandwidth, operations / rate, LAUNCH)

An estimate by arithmetic, to compare two programs by, not a measurement: nothing of a
kernel's own quality is in it. Bytes are those of operands and results; of a stack that
is sliced on the way in, or updated in place, the slice. A kernel of ours that reads a
part of a cache is counted by the share that `filled` says.
"""

import collections
import dataclasses
import math
import re

from vlm_rlaif_jax.plan import hlo

LAUNCH = 2.5e-6  # seconds: the least that a kernel of a graph was seen to take
FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
  'partition-id', 'replica-id', 'opt-barrier', 'copy-done', 'async-done', 'iota',
  'async-update', 'all-reduce-done', 'all-gather-done',
}  # fmt: skip
_LINE = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[suf]\d+\w*|bf16)\[([\d,]*)\]')
_CALLS = re.compile(r'calls=%?([\w.\-]+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of an HLO text."""

  root: bool
  name: str
  type: str
  operation: str
  operands: tuple[str, ...]
  rest: str


@dataclasses.dataclass(frozen=True)
class Kernel:
  """kind: what makes it: a library, Triton, or XLA's own way of fusing."""

  name: str
  kind: str
  moved: float
  flops: float
  scope: str

  def seconds(self, bandwidth: float, rate: float, launch: float = LAUNCH) -> float:
    return max(self.moved / bandwidth, self.flops / rate, launch)


@dataclasses.dataclass(frozen=True)
class Loop:
  """The body of a loop, or the program around all loops.

  Attributes:
    times: how often it is executed.
  """

  name: str
  times: float
  kernels: tuple[Kernel, ...]

  @property
  def moved(self) -> float:
    return sum(kernel.moved for kernel in self.kernels)

  @property
  def flops(self) -> float:
    return sum(kernel.flops for kernel in self.kernels)

  def seconds(self, bandwidth: float, rate: float, launch: float = LAUNCH) -> float:
    """Of one execution."""
    return sum(kernel.seconds(bandwidth, rate, launch) for kernel in self.kernels)


def loops(text: str, trips: int, filled: float = 1.0) -> list[Loop]:
  """The program and its loops, the one with most bytes in all first.

  Args:
    text: of an optimized module.
    trips: of a loop whose end depends on the data.
    filled: share of a cache that a kernel with lengths reads.
  """
  bodies, entry = hlo.computations(text)
  parsed = {name: [_parse(line) for line in lines] for name, lines in bodies.items()}
  known = {name: {i.name: i for i in lines if i} for name, lines in parsed.items()}
  times = hlo.rounds(bodies, entry, trips)
  program = _Program(known, filled)
  found = []
  for name in [entry, *_loop_bodies(known, entry)]:
    kernels = tuple(program.kernels(name))
    if kernels:
      found.append(Loop(name, times[name], kernels))
  return sorted(found, key=lambda loop: -loop.times * loop.moved)


def _loop_bodies(known, entry: str) -> list[str]:
  """Of loops, however deep; what they call themselves is counted with them."""
  return [
    found[1]
    for lines in known.values()
    for line in lines.values()
    if line.operation == 'while'
    and (found := re.search(r'body=%?([\w.\-]+)', line.rest))
  ]


def _parse(line: str) -> Instruction | None:
  found = _LINE.match(line)
  if not found:
    return None
  text, depth, end = found[5], 1, len(found[5])
  for place, character in enumerate(text):
    depth += (character in '([{') - (character in ')]}')
    if depth == 0:
      end = place
      break
  operands = tuple(re.findall(r'%([\w.\-]+)', text[:end]))
  return Instruction(
    bool(found[1]), found[2], found[3], found[4], operands, text[end + 1 :]
  )


def _size(shown: str) -> float:
  """Bytes of all arrays of a type."""
  return sum(
    math.prod(int(n) for n in dims.split(',') if n) * hlo._bits(kind) / 8
    for kind, dims in _ARRAY.findall(shown)
  )


def _first(shown: str) -> list[int]:
  found = _ARRAY.search(shown)
  return [int(n) for n in found[2].split(',') if n] if found else []


class _Program:
  def __init__(self, known: dict[str, dict[str, Instruction]], filled: float):
    self.known, self.filled = known, filled

  def kernels(self, body: str):
    for line in self.known[body].values():
      if line.operation in ('call', 'conditional', 'async-start'):
        for name in re.findall(
          r'(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)',
          line.rest,
        ):
          if name in self.known:
            yield from self.kernels(name)
      elif line.operation not in FREE and line.operation != 'while':
        yield self._kernel(body, line)

  def _kernel(self, body: str, line: Instruction) -> Kernel:
    lines, kind, flops = self.known[body], line.operation, 0.0
    inputs = [_size(lines[name].type) for name in line.operands if name in lines]
    moved = sum(inputs) + _size(line.type)
    called = _CALLS.search(line.rest)
    if line.operation in ('fusion', 'fusion-start') and called:
      found = re.search(r'"kind":"([\w$]+)"', line.rest) or re.search(
        r'kind=(\w+)', line.rest
      )
      kind = found[1] if found else kind
      read, written, flops = self._fused(called[1])
      moved = read + written
    elif line.operation == 'custom-call':
      target = _TARGET.search(line.rest)
      kind = target[1] if target else kind
      if 'cublas' in kind or 'gemm' in kind:
        moved, flops = self._product(lines, line, inputs)
      elif 'Triton' in kind or 'triton' in kind or 'cudnn' in kind:
        shapes = [lines[name].type for name in line.operands if name in lines]
        moved, flops = self._ours(line, inputs, shapes)
    elif line.operation == 'dot':
      flops = self._dot(lines, line)
    elif line.operation == 'dynamic-update-slice':
      moved = 2 * inputs[1]
    elif line.operation == 'dynamic-slice':
      moved = 2 * _size(line.type)
    scope = re.search(r'op_name="([^"]*)"', line.rest)
    return Kernel(line.name, kind, moved, flops, scope[1] if scope else '')

  def _product(self, lines, line: Instruction, inputs) -> tuple[float, float]:
    """Of a library's matrix product, whose result may come with a workspace."""
    contracted = re.search(r'"lhs_contracting_dimensions":\["?(\d+)', line.rest)
    out = _first(line.type)
    first = lines.get(line.operands[0])
    length = 1
    if contracted and first:
      length = _first(first.type)[int(contracted[1])]
    result = _ARRAY.search(line.type)
    written = _size(result[0]) if result else 0.0
    return sum(inputs) + written, 2.0 * length * math.prod(out)

  def _ours(self, line: Instruction, inputs, shapes) -> tuple[float, float]:
    """A kernel with lengths reads a share of the two largest inputs; one of NF4 a layer
    of each stack."""
    if 'cache_attend' in line.rest:
      largest = sorted(inputs)[-2:]
      moved = sum(inputs) - (1 - self.filled) * sum(largest) + _size(line.type)
      return moved, 0.0
    if 'nf4_product' in line.rest:
      layers = max(_first(part)[0] for part in shapes)
      return sum(x / (layers if x > 1e6 else 1) for x in inputs) + _size(line.type), 0.0
    return sum(inputs) + _size(line.type), 0.0

  def _fused(self, name: str) -> tuple[float, float, float]:
    """Bytes read, bytes written and operations of a fused computation."""
    lines = self.known[name]
    read = flops = 0.0
    for line in lines.values():
      if line.operation == 'dot':
        flops += self._dot(lines, line)
      elif line.operation == 'fusion' and (called := _CALLS.search(line.rest)):
        flops += self._fused(called[1])[2]
      elif line.operation == 'parameter':
        read += self._read(lines, line)
    written = sum(self._written(lines, line) for line in lines.values() if line.root)
    return read, written, flops

  def _read(self, lines, parameter: Instruction) -> float:
    """A parameter that is only sliced counts its slices; one that is updated in place
    nothing."""
    whole, got, waiting, used = _size(parameter.type), 0.0, [parameter.name], False
    while waiting:
      name = waiting.pop()
      for user in lines.values():
        if name not in user.operands:
          continue
        used, first = True, user.operands[0] == name
        if user.operation in ('bitcast', 'reshape'):
          waiting.append(user.name)
        elif first and user.operation in ('dynamic-slice', 'slice', 'gather'):
          got += _size(user.type)
        elif not (first and user.operation == 'dynamic-update-slice'):
          return whole
    return min(got, whole) if used else 0.0

  def _written(self, lines, root: Instruction) -> float:
    if root.operation == 'tuple':
      return sum(self._written(lines, lines[n]) for n in root.operands if n in lines)
    if root.operation == 'dynamic-update-slice':
      return _size(lines[root.operands[1]].type)
    if root.operation in ('bitcast', 'convert', 'copy') and root.operands:
      inner = lines.get(root.operands[0])
      if inner and inner.operation == 'dynamic-update-slice':
        return self._written(lines, inner)
    return _size(root.type)

  def _dot(self, lines, line: Instruction) -> float:
    left = lines.get(line.operands[0])
    found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line.rest)
    if not left or not found:
      return 0.0
    sizes = _first(left.type)
    length = math.prod(sizes[int(n)] for n in found[1].split(',') if n)
    return 2.0 * length * math.prod(_first(line.type))


def lines(found: list[Loop], bandwidth: float, rate: float) -> list[str]:
  """A row for each loop, by kind of kernel."""
  shown, total = [], 0.0
  for loop in found:
    seconds = loop.seconds(bandwidth, rate)
    total += seconds * loop.times
    kinds: dict = collections.defaultdict(lambda: [0, 0.0])
    for kernel in loop.kernels:
      kinds[kernel.kind][0] += 1
      kinds[kernel.kind][1] += kernel.moved
    parts = ', '.join(
      f'{name} x{count} {moved / 1e6:,.0f} MB'
      for name, (count, moved) in sorted(kinds.items(), key=lambda x: -x[1][1])
    )
    shown.append(
      f'{loop.times:8.0f} x {len(loop.kernels):5d} kernels '
      f'{loop.moved / 1e6:12,.0f} MB '
      f'{loop.flops / 1e9:11,.0f} GFLOP {1e3 * seconds:10.3f} ms '
      f'{seconds * loop.times:8.2f} s   {parts}'
    )
  return [*shown, f'in all {total:.2f} s']
