"""Lists the kernels of a compiled GPU program, loop by loop, with bytes and operations.

    seconds of a kernel = max(bytes / bandwidth, operations / rate, LAUNCH)

This is an estimate by arithmetic that serves to compare two programs, not a
measurement: it knows nothing of how well a kernel is written. Bytes are those of
operands and results; of a stack that is sliced while it is read, or updated in place,
those of the slice. For a kernel of this package that reads a part of a cache, `filled`
is the share that it reads.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from vlm_rlaif_jax.plan import hlo

LAUNCH = 2.5e-6  # seconds: the least measured for a kernel of a graph
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


Lines = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel.

  Attributes:
    kind: its origin: a library, Triton, or a kind of fusion by XLA.
    bytes_moved: read and written by one launch.
    flops: operations of one launch.
    scope: `op_name` of its instruction.
  """

  name: str
  kind: str
  bytes_moved: float
  flops: float
  scope: str

  def seconds(self, bandwidth: float, rate: float, launch: float = LAUNCH) -> float:
    """Returns the least seconds of one launch."""
    return max(self.bytes_moved / bandwidth, self.flops / rate, launch)


@dataclasses.dataclass(frozen=True)
class Loop:
  """The body of a loop, or the program outside all loops.

  Attributes:
    times: number of executions.
  """

  name: str
  times: float
  kernels: tuple[Kernel, ...]

  @property
  def bytes_moved(self) -> float:
    """Returns the bytes of one execution."""
    return sum(kernel.bytes_moved for kernel in self.kernels)

  @property
  def flops(self) -> float:
    """Returns the operations of one execution."""
    return sum(kernel.flops for kernel in self.kernels)

  def seconds(self, bandwidth: float, rate: float, launch: float = LAUNCH) -> float:
    """Returns the least seconds of one execution."""
    return sum(kernel.seconds(bandwidth, rate, launch) for kernel in self.kernels)


def loops(text: str, loop_iterations: int, filled: float = 1.0) -> list[Loop]:
  """Returns the program and its loops, the one with most bytes in all first.

  Args:
    text: of an optimized module.
    loop_iterations: of a loop whose end depends on the data.
    filled: share of a cache that a kernel with lengths reads.
  """
  bodies, entry = hlo.computations(text)
  instructions = {
    name: {one.name: one for line in lines if (one := _parse(line))}
    for name, lines in bodies.items()
  }
  times = hlo.executions(bodies, entry, loop_iterations)
  program = _Program(instructions, filled)
  result = []
  for name in [entry, *_loop_bodies(instructions)]:
    kernels = tuple(program.kernels(name))
    if kernels:
      result.append(Loop(name, times[name], kernels))
  return sorted(result, key=lambda loop: -loop.times * loop.bytes_moved)


def _loop_bodies(instructions: dict[str, dict[str, Instruction]]) -> list[str]:
  """Returns the bodies of all loops, nested ones too."""
  return [
    body[1]
    for lines in instructions.values()
    for line in lines.values()
    if line.operation == 'while'
    and (body := re.search(r'body=%?([\w.\-]+)', line.rest))
  ]


def _parse(line: str) -> Instruction | None:
  match = _LINE.match(line)
  if not match:
    return None
  root, name, result, operation, text = match.groups()
  depth, end = 1, len(text)
  for place, character in enumerate(text):
    depth += (character in '([{') - (character in ')]}')
    if depth == 0:
      end = place
      break
  operands = tuple(re.findall(r'%([\w.\-]+)', text[:end]))
  return Instruction(bool(root), name, result, operation, operands, text[end + 1 :])


def _size(type_: str) -> float:
  """Returns the bytes of all arrays of a type."""
  return sum(
    math.prod(int(n) for n in dims.split(',') if n) * hlo.bits(kind) / 8
    for kind, dims in _ARRAY.findall(type_)
  )


def _first(type_: str) -> list[int]:
  """Returns the shape of the first array of a type."""
  match = _ARRAY.search(type_)
  return [int(n) for n in match[2].split(',') if n] if match else []


class _Program:
  """The instructions of every computation, by name."""

  def __init__(self, instructions: dict[str, dict[str, Instruction]], filled: float):
    self.instructions, self.filled = instructions, filled

  def kernels(self, body: str) -> Iterator[Kernel]:
    """Yields the kernels of a computation and of those that it calls, loops aside."""
    for line in self.instructions[body].values():
      if line.operation in ('call', 'conditional', 'async-start'):
        for name in re.findall(
          r'(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)',
          line.rest,
        ):
          if name in self.instructions:
            yield from self.kernels(name)
      elif line.operation not in FREE and line.operation != 'while':
        yield self._kernel(body, line)

  def _kernel(self, body: str, line: Instruction) -> Kernel:
    lines, kind, flops = self.instructions[body], line.operation, 0.0
    inputs = [_size(lines[name].type) for name in line.operands if name in lines]
    bytes_moved = sum(inputs) + _size(line.type)
    called = _CALLS.search(line.rest)
    if line.operation in ('fusion', 'fusion-start') and called:
      match = re.search(r'"kind":"([\w$]+)"', line.rest) or re.search(
        r'kind=(\w+)', line.rest
      )
      kind = match[1] if match else kind
      read, written, flops = self._fused(called[1])
      bytes_moved = read + written
    elif line.operation == 'custom-call':
      target = _TARGET.search(line.rest)
      kind = target[1] if target else kind
      if 'cublas' in kind or 'gemm' in kind:
        bytes_moved, flops = self._product(lines, line, inputs)
      elif 'Triton' in kind or 'triton' in kind or 'cudnn' in kind:
        shapes = [lines[name].type for name in line.operands if name in lines]
        bytes_moved, flops = self._ours(line, inputs, shapes)
    elif line.operation == 'dot':
      flops = self._dot(lines, line)
    elif line.operation == 'dynamic-update-slice':
      bytes_moved = 2 * inputs[1]
    elif line.operation == 'dynamic-slice':
      bytes_moved = 2 * _size(line.type)
    scope = re.search(r'op_name="([^"]*)"', line.rest)
    return Kernel(line.name, kind, bytes_moved, flops, scope[1] if scope else '')

  def _product(
    self, lines: Lines, line: Instruction, inputs: list[float]
  ) -> tuple[float, float]:
    """Counts a library's matrix product, whose result may include a workspace."""
    contracted = re.search(r'"lhs_contracting_dimensions":\["?(\d+)', line.rest)
    out = _first(line.type)
    first = lines.get(line.operands[0])
    length = 1
    if contracted and first:
      length = _first(first.type)[int(contracted[1])]
    result = _ARRAY.search(line.type)
    written = _size(result[0]) if result else 0.0
    return sum(inputs) + written, 2.0 * length * math.prod(out)

  def _ours(
    self, line: Instruction, inputs: list[float], shapes: list[str]
  ) -> tuple[float, float]:
    """Counts a kernel of this package.

    One with lengths reads a share of the two largest inputs; one of NF4 reads one layer
    of each stack.
    """
    if 'cache_attend' in line.rest:
      largest = sorted(inputs)[-2:]
      bytes_moved = sum(inputs) - (1 - self.filled) * sum(largest) + _size(line.type)
      return bytes_moved, 0.0
    if 'nf4_product' in line.rest:
      layers = max(_first(part)[0] for part in shapes)
      return sum(x / (layers if x > 1e6 else 1) for x in inputs) + _size(line.type), 0.0
    return sum(inputs) + _size(line.type), 0.0

  def _fused(self, name: str) -> tuple[float, float, float]:
    """Returns bytes read, bytes written and operations of a fused computation."""
    lines = self.instructions[name]
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

  def _read(self, lines: Lines, parameter: Instruction) -> float:
    """Returns the bytes that a fused computation reads of a parameter.

    One that is only sliced counts as its slices, and one that is updated in place as
    nothing.
    """
    size, sliced, waiting, used = _size(parameter.type), 0.0, [parameter.name], False
    while waiting:
      name = waiting.pop()
      for user in lines.values():
        if name not in user.operands:
          continue
        used, first = True, user.operands[0] == name
        if user.operation in ('bitcast', 'reshape'):
          waiting.append(user.name)
        elif first and user.operation in ('dynamic-slice', 'slice', 'gather'):
          sliced += _size(user.type)
        elif not (first and user.operation == 'dynamic-update-slice'):
          return size
    return min(sliced, size) if used else 0.0

  def _written(self, lines: Lines, root: Instruction) -> float:
    if root.operation == 'tuple':
      return sum(self._written(lines, lines[n]) for n in root.operands if n in lines)
    if root.operation == 'dynamic-update-slice':
      return _size(lines[root.operands[1]].type)
    if root.operation in ('bitcast', 'convert', 'copy') and root.operands:
      inner = lines.get(root.operands[0])
      if inner and inner.operation == 'dynamic-update-slice':
        return self._written(lines, inner)
    return _size(root.type)

  def _dot(self, lines: Lines, line: Instruction) -> float:
    left = lines.get(line.operands[0])
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line.rest)
    if not left or not contracted:
      return 0.0
    sizes = _first(left.type)
    length = math.prod(sizes[int(n)] for n in contracted[1].split(',') if n)
    return 2.0 * length * math.prod(_first(line.type))


def lines(loops_: list[Loop], bandwidth: float, rate: float) -> list[str]:
  """Returns one line of text a loop, with its kernels by kind, and one of the sum."""
  rows, total = [], 0.0
  for loop in loops_:
    seconds = loop.seconds(bandwidth, rate)
    total += seconds * loop.times
    kinds: dict = collections.defaultdict(lambda: [0, 0.0])
    for kernel in loop.kernels:
      kinds[kernel.kind][0] += 1
      kinds[kernel.kind][1] += kernel.bytes_moved
    parts = ', '.join(
      f'{name} x{count} {bytes_moved / 1e6:,.0f} MB'
      for name, (count, bytes_moved) in sorted(kinds.items(), key=lambda x: -x[1][1])
    )
    rows.append(
      f'{loop.times:8.0f} x {len(loop.kernels):5d} kernels '
      f'{loop.bytes_moved / 1e6:12,.0f} MB '
      f'{loop.flops / 1e9:11,.0f} GFLOP {1e3 * seconds:10.3f} ms '
      f'{seconds * loop.times:8.2f} s   {parts}'
    )
  return [*rows, f'in all {total:.2f} s']
