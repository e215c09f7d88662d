"""Reads from the HLO text of a compiled program what it sends between devices."""

import collections
import math
import re

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_HEADER = re.compile(r'^\s*(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations|called_computations|'
  r'true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ITERATIONS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_FUSED = re.compile(r'\bcalls=%?([\w.\-]+)')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_PART = re.compile(r'channel_id=(\d+).*chain_id=')
_BOUND = re.compile(r'= [su]32\[\]\S* constant\((\d+)\)')
_LISTED_GROUPS = re.compile(r'replica_groups=\{\{([\d,]+)\}')
_NUMBERED_GROUPS = re.compile(r'replica_groups=\[\d+,(\d+)\]<=')
_ARRAY = re.compile(r'\b(pred|[suf]\d+\w*|bf16|c64|c128)\[([\d,]*)\]')
_BITS = {'pred': 8, 'bf16': 16, 's4': 4, 'u4': 4, 'c64': 64, 'c128': 128}


def collectives(text: str, loop_iterations: int) -> dict[str, dict[str, float]]:
  """Returns kind -> how many a device executes, and the bytes of their results.

  Of a reduce-scatter it is the bytes of what is summed: what a device keeps of it is a
  share, and all of it travels. Bodies of loops count once an iteration.

  Args:
    loop_iterations: of a loop whose end depends on the data.
  """
  bodies, entry = computations(text)
  times = executions(bodies, entry, loop_iterations)
  counts: dict = collections.defaultdict(lambda: {'count': 0.0, 'bytes': 0.0})
  counted = set()
  for name, lines in bodies.items():
    for line in lines:
      kind = kind_of(line)
      if kind and times.get(name):
        # On TPU one collective is cut over several fusions, and stands in each.
        if part := _PART.search(line):
          if (kind, part[1]) in counted:
            continue
          counted.add((kind, part[1]))
        counts[kind]['count'] += times[name]
        size = result_bytes(line)
        if kind == 'reduce-scatter':
          size *= group_size(line, text)
        counts[kind]['bytes'] += times[name] * size
  return dict(counts)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns name -> instructions of every computation, and the name of the entry."""
  bodies: dict[str, list[str]] = {}
  entry = current = ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header and ' = ' not in line.split('(')[0]:
      current = header[1]
      bodies[current] = []
      if line.lstrip().startswith('ENTRY'):
        entry = current
    elif line.strip() == '}':
      current = ''
    elif current:
      bodies[current].append(line)
  return bodies, entry


def executions(
  bodies: dict[str, list[str]], entry: str, loop_iterations: int
) -> dict[str, float]:
  """Returns how often each computation is executed."""
  times: dict[str, float] = collections.defaultdict(float)
  waiting = [(entry, 1.0)]
  while waiting:
    name, factor = waiting.pop()
    times[name] += factor
    for line in bodies.get(name, ()):
      inner = factor
      if re.search(r'\bwhile\(', line):
        inner *= _iterations_of(line, bodies, loop_iterations)
      for group in _CALLED.findall(line):
        for target in re.findall(r'[\w.\-]+', group):
          if target in bodies:
            waiting.append((target, inner))
  return dict(times)


def _iterations_of(
  line: str, bodies: dict[str, list[str]], loop_iterations: int
) -> int:
  """Returns the iterations of a loop; TPU texts have them in the condition alone."""
  if count := _ITERATIONS.search(line):
    return int(count[1])
  named = _CONDITION.search(line)
  lines = list(bodies.get(named[1], ())) if named else []
  for fused in _FUSED.findall('\n'.join(lines)):
    lines += bodies.get(fused, ())
  bounds = set(_BOUND.findall('\n'.join(lines)))
  return int(bounds.pop()) if len(bounds) == 1 else loop_iterations


def kind_of(line: str) -> str | None:
  """Returns the collective that an instruction starts, or None; ends do not count."""
  operation = re.search(r'= .*?\s([\w\-]+)\(', line)
  if operation is None:
    return None
  name = operation[1].removesuffix('-start')
  return name if name in KINDS else None


def group_size(line: str, text: str) -> int:
  """Returns the devices among which a collective is.

  They are listed, as {{0,1},{2,3}}, or numbered, as [2,4]<=[8], two groups of four.

  Args:
    text: of the module, which says how many devices there are: without groups, all.
  """
  if listed := _LISTED_GROUPS.search(line):
    return listed[1].count(',') + 1
  if numbered := _NUMBERED_GROUPS.search(line):
    return int(numbered[1])
  counts = re.findall(r'(?:num_partitions|replica_count)=(\d+)', text)
  return math.prod(map(int, counts))


def result_bytes(line: str) -> float:
  """Returns the bytes of an instruction's result; a started one shows both sides."""
  result = line.split(' = ', 1)[1]
  result = re.split(r'\s[\w\-]+\(', result, maxsplit=1)[0]
  sizes = [
    math.prod(int(n) for n in dims.split(',') if n) * bits(kind) / 8
    for kind, dims in _ARRAY.findall(result)
  ]
  if '-start(' in line and len(sizes) > 1:
    if 'all-reduce-start' in line:
      return sum(sizes)
    return sum(sizes[len(sizes) // 2 :]) if len(sizes) % 2 == 0 else max(sizes)
  return sum(sizes)


def bits(kind: str) -> int:
  """Returns the width of an element type by its name in HLO."""
  if kind in _BITS:
    return _BITS[kind]
  digits = re.match(r'[suf](\d+)', kind)
  return int(digits[1]) if digits else 32
