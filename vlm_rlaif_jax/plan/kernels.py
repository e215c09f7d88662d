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

from vlm_rlaif_jax.plan import hlo, instructions
from vlm_rlaif_jax.plan.instructions import Instruction, Lines

LAUNCH = 2.5e-6  # seconds: the least measured for a kernel of a graph
DECODE = 'rollout/decode/while'  # scope of the loop over tokens, of both samplers
FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
  'partition-id', 'replica-id', 'opt-barrier', 'copy-done', 'async-done', 'iota',
  'async-update', 'all-reduce-done', 'all-gather-done', 'slice-done',
  'dynamic-slice-done', 'dynamic-update-slice-done', 'collective-permute-done',
}  # fmt: skip
_CALLS = re.compile(r'calls=%?([\w.\-]+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BODY = re.compile(r'body=%?([\w.\-]+)')
_ALIAS = 'output_to_operand_aliasing'  # of a TPU's other tiling of the same bytes
_SCOPE = re.compile(r'op_name="([^"]*)"')


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


class Program:
  """The instructions of a compiled program.

  Args:
    text: of an optimized module.
    filled: share of a cache that a kernel with lengths reads.
  """

  def __init__(self, text: str, filled: float = 1.0):
    self.bodies, self.entry = hlo.computations(text)
    self.instructions = instructions.of(self.bodies)
    self.filled = filled

  def loops(self, loop_iterations: int) -> list[Loop]:
    """Returns the program and its loops, the one with most bytes in all first.

    Args:
      loop_iterations: of a loop whose end depends on the data.
    """
    times = hlo.executions(self.bodies, self.entry, loop_iterations)
    result = []
    for name in dict.fromkeys([self.entry, *(body for _, body in self._whiles())]):
      kernels = tuple(self.kernels(name))
      if kernels:
        result.append(Loop(name, times[name], kernels))
    return sorted(result, key=lambda loop: -loop.times * loop.bytes_moved)

  def decode_steps(self, loop_iterations: int) -> list[Loop]:
    """Returns a step of each loop over tokens, the loop over its layers unrolled.

    Args:
      loop_iterations: of a loop over tokens whose limit the program does not state.
    """
    times = hlo.executions(self.bodies, self.entry, loop_iterations)
    loops, steps = self._whiles(), []
    for name in [body for line, body in loops if _is_decode(line)]:
      inside, kernels = hlo.executions(self.bodies, name, 1), []
      for body in dict.fromkeys([name, *(body for _, body in loops)]):
        kernels += int(inside.get(body, 0)) * list(self.kernels(body))
      steps.append(Loop(name, times[name], tuple(kernels)))
    return steps

  def _whiles(self) -> list[tuple[Instruction, str]]:
    """Returns every loop, nested ones too, with the name of its body."""
    return [
      (line, body[1])
      for lines in self.instructions.values()
      for line in lines.values()
      if line.operation == 'while' and (body := _BODY.search(line.rest))
    ]

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
    inputs = [
      instructions.size(lines[name].type) for name in line.operands if name in lines
    ]
    bytes_moved = sum(inputs) + instructions.size(line.type)
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
    elif line.operation in ('dot', 'convolution'):
      flops = self._dot(lines, line)
    elif line.operation == 'dynamic-update-slice':
      bytes_moved = 2 * inputs[1]
    elif line.operation in ('slice', 'dynamic-slice', 'slice-start'):
      place = 1 if line.operation == 'slice-start' else 0  # after what is sliced
      read = instructions.nbytes(line.type)[place] if inputs[0] else 0.0
      bytes_moved = read + instructions.sizes(line.type)[place]
    elif line.operation == 'copy-start':  # its type has both sides
      bytes_moved = instructions.size(line.type)
    scope = _SCOPE.search(line.rest)
    return Kernel(line.name, kind, bytes_moved, flops, scope[1] if scope else '')

  def _product(
    self, lines: Lines, line: Instruction, inputs: list[float]
  ) -> tuple[float, float]:
    """Counts a library's matrix product, whose result may include a workspace."""
    contracted = re.search(r'"lhs_contracting_dimensions":\["?(\d+)', line.rest)
    out = instructions.shape(line.type)
    first = lines.get(line.operands[0])
    length = 1
    if contracted and first:
      length = instructions.shape(first.type)[int(contracted[1])]
    written = instructions.sizes(line.type)[:1]
    return sum(inputs) + sum(written), 2.0 * length * math.prod(out)

  def _ours(
    self, line: Instruction, inputs: list[float], shapes: list[str]
  ) -> tuple[float, float]:
    """Counts a kernel of this package.

    One with lengths reads a share of all but the three smallest inputs (two of lengths,
    and the queries); one of NF4 reads one layer of each stack.
    """
    if 'cache_attend' in line.rest:
      cache = sum(sorted(inputs)[3:])
      bytes_moved = sum(inputs) - (1 - self.filled) * cache
      return bytes_moved + instructions.size(line.type), 0.0
    if 'nf4_product' in line.rest:
      layers = max(instructions.shape(part)[0] for part in shapes)
      return sum(x / (layers if x > 1e6 else 1) for x in inputs) + instructions.size(
        line.type
      ), 0.0
    return sum(inputs) + instructions.size(line.type), 0.0

  def _fused(self, name: str) -> tuple[float, float, float]:
    """Returns bytes read, bytes written and operations of a fused computation."""
    lines = self.instructions[name]
    read = flops = 0.0
    for line in lines.values():
      flops += self._dot(lines, line)
      if line.operation == 'fusion' and (called := _CALLS.search(line.rest)):
        flops += self._fused(called[1])[2]
      elif line.operation == 'parameter':
        read += self._read(lines, line)
    written = sum(self._written(lines, line) for line in lines.values() if line.root)
    return read, written, flops

  def _read(self, lines: Lines, parameter: Instruction) -> float:
    """Returns the bytes that a fused computation reads of a parameter.

    One that is only sliced counts as its slices, also in a fusion inside of it, and one
    that is updated in place as nothing.
    """
    size, sliced, waiting, used = (
      instructions.size(parameter.type),
      0.0,
      [parameter.name],
      False,
    )
    while waiting:
      name = waiting.pop()
      for user in lines.values():
        if name not in user.operands:
          continue
        used, first = True, user.operands[0] == name
        if user.operation in ('bitcast', 'reshape') or _ALIAS in user.rest:
          waiting.append(user.name)
        elif first and user.operation in ('dynamic-slice', 'slice', 'gather'):
          sliced += sum(instructions.nbytes(user.type))
        elif user.operation == 'fusion' and (called := _CALLS.search(user.rest)):
          inner = self.instructions[called[1]]
          sliced += sum(
            self._read(inner, line)
            for line in inner.values()
            if line.number >= 0 and user.operands[line.number] == name
          )
        elif not (first and user.operation == 'dynamic-update-slice'):
          return size
    return min(sliced, size) if used else 0.0

  def _written(self, lines: Lines, root: Instruction) -> float:
    if root.operation == 'tuple':
      return sum(self._written(lines, lines[n]) for n in root.operands if n in lines)
    if root.operation == 'dynamic-update-slice':
      return instructions.size(lines[root.operands[1]].type)
    if root.operation == 'fusion' and (called := _CALLS.search(root.rest)):
      inner_lines = self.instructions[called[1]]
      return sum(self._written(inner_lines, x) for x in inner_lines.values() if x.root)
    if root.operation in ('bitcast', 'convert', 'copy') and root.operands:
      inner = lines.get(root.operands[0])
      if inner and inner.operation == 'dynamic-update-slice':
        return self._written(lines, inner)
    return instructions.size(root.type)

  def _dot(self, lines: Lines, line: Instruction) -> float:
    """Returns the operations of a product; TPUs compute it as a convolution."""
    if line.operation == 'convolution':
      return _convolution(lines, line)
    if line.operation != 'dot':
      return 0.0
    left = lines.get(line.operands[0])
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line.rest)
    if not left or not contracted:
      return 0.0
    sizes = instructions.shape(left.type)
    length = math.prod(sizes[int(n)] for n in contracted[1].split(',') if n)
    return 2.0 * length * math.prod(instructions.shape(line.type))


def _convolution(lines: Lines, line: Instruction) -> float:
  """Returns the operations of a convolution.

  Batch dimensions of a product are spatial ones, with a window that is dilated or
  reversed so that a position meets one position of the weights alone.
  """
  kernel = lines.get(line.operands[1])
  labels = re.search(r'dim_labels=\w+_(\w+)->', line.rest)
  if not kernel or not labels:
    return 0.0
  sizes = dict(zip(labels[1], instructions.shape(kernel.type), strict=True))
  length = sizes.pop('i')
  if not re.search(r'window=\{[^}]*(lhs_dilate|rhs_reversal)', line.rest):
    length *= math.prod(size for axis, size in sizes.items() if axis.isdigit())
  return 2.0 * length * math.prod(instructions.shape(line.type))


def _is_decode(line: Instruction) -> bool:
  scope = _SCOPE.search(line.rest)
  return bool(scope) and scope[1].endswith(DECODE)


def launch_of(platform: str) -> float:
  """Returns the least seconds of a kernel; a TPU's are one program."""
  return LAUNCH if platform == 'cuda' else 0.0


def lines(
  loops: list[Loop], bandwidth: float, rate: float, launch: float = LAUNCH
) -> list[str]:
  """Returns one line of text a loop, with its kernels by kind, and one of the sum."""
  rows = []
  for loop in loops:
    seconds = loop.seconds(bandwidth, rate, launch)
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
  started = sum(loop.times * len(loop.kernels) for loop in loops)
  bytes_moved = sum(loop.times * loop.bytes_moved for loop in loops)
  flops = sum(loop.times * loop.flops for loop in loops)
  seconds = sum(loop.times * loop.seconds(bandwidth, rate, launch) for loop in loops)
  return [
    *rows,
    f'in all {started:,.0f} kernels, {bytes_moved / 1e12:.2f} TB, '
    f'{flops / 1e15:.2f} PFLOP, {seconds:.2f} s',
  ]
