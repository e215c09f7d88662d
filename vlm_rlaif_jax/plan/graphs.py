"""Reads which kernels XLA starts as one CUDA graph, from its dump of a program.

    003: kWhile ...
    condition:
        004: kCustomKernel ...
      body:
        000: kCommandBuffer ...       one graph of two kernels
            007: kCustomKernel ...
            008: kCublasLtMatmul ...
        009: kCopy ...                outside of it

XLA writes the dump with `DUMP`; a compiled program does not say it.
"""

import dataclasses
import pathlib
import re

DUMP = '--xla_dump_hlo_as_text --xla_dump_to='  # of XLA_FLAGS; a folder follows
_THUNK = re.compile(r'^( *)\d+: (k\w+)')
_GRAPH, _LOOP = 'kCommandBuffer', 'kWhile'


@dataclasses.dataclass(frozen=True)
class Starts:
  """What the host starts in one pass of a loop.

  Attributes:
    graphs: CUDA graphs.
    captured: kernels, products and copies inside of them.
    single: those that are started one by one.
  """

  graphs: int
  captured: int
  single: int


def longest_loop(folder: pathlib.Path, module: str) -> Starts | None:
  """Returns what the loop with most kernels of a module starts; None: no dump of it.

  Args:
    folder: of the dump.
    module: name of the XLA module, such as 'jit_rollout'.
  """
  dumps = sorted(folder.glob(f'*.{module}.thunk_sequence_after_thunk_passes.txt'))
  if not dumps:
    return None
  starts_of_loops = loops(dumps[-1].read_text())
  return max(
    starts_of_loops, key=lambda starts: starts.captured + starts.single, default=None
  )


def loops(text: str) -> list[Starts]:
  """Returns what the body of every loop starts, loops inside of it aside."""
  lines = text.splitlines()
  return [
    _starts(lines[number + 1 :], len(match[1]))
    for number, line in enumerate(lines)
    if (match := _THUNK.match(line)) and match[2] == _LOOP
  ]


def _starts(lines: list[str], indent: int) -> Starts:
  """Counts the body of a loop, given the lines after it and its indentation."""
  counts = {'graphs': 0, 'captured': 0, 'single': 0}
  inside, graph, nested = False, None, None
  for line in lines:
    match = _THUNK.match(line)
    depth = len(line) - len(line.lstrip())
    if match and depth <= indent:
      break
    if not match:
      inside = inside or (line.strip() == 'body:' and nested is None)
      continue
    if nested is not None and depth > nested:
      continue
    nested = depth if match[2] == _LOOP else None
    if not inside:
      continue
    if graph is not None and depth > graph:
      counts['captured'] += 1
    elif match[2] == _GRAPH:
      counts['graphs'] += 1
      graph = depth
    else:
      counts['single'] += match[2] != _LOOP
      graph = None
  return Starts(**counts)
