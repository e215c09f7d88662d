"""Reads the instructions of an HLO text: types, operands, called computations."""

import dataclasses
import math
import re

from vlm_rlaif_jax.plan import hlo

_LINE = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[suf]\d+\w*|bf16)\[([\d,]*)\](\{[^{}]*\})?')
_ON_CHIP = re.compile(r':T\(.*S\(1\)')  # TPU texts: tiled, in the chip's own memory


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of an HLO text.

  Attributes:
    root: whether it is the result of its computation.
    type: with layouts, as it is written.
    rest: what follows the operands.
    number: of a parameter; -1 for what is none.
  """

  root: bool
  name: str
  type: str
  operation: str
  operands: tuple[str, ...]
  rest: str
  number: int = -1


Lines = dict[str, Instruction]


def of(bodies: dict[str, list[str]]) -> dict[str, Lines]:
  """Returns computation -> name -> instruction, given `hlo.computations`."""
  return {
    name: {one.name: one for line in lines if (one := parse(line))}
    for name, lines in bodies.items()
  }


def parse(line: str) -> Instruction | None:
  """Returns the instruction of a line; None if it has none."""
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
  number = int(text[:end]) if operation == 'parameter' else -1
  rest = text[end + 1 :]
  return Instruction(bool(root), name, result, operation, operands, rest, number)


def arrays(type_: str) -> list[tuple[str, list[int], str]]:
  """Returns (element type, shape, layout) of every array of a type."""
  return [
    (kind, [int(n) for n in dims.split(',') if n], layout)
    for kind, dims, layout in _ARRAY.findall(type_)
  ]


def shape(type_: str) -> list[int]:
  """Returns the shape of the first array of a type; [] if there is none."""
  shapes = [dims for _, dims, _ in arrays(type_)]
  return shapes[0] if shapes else []


def nbytes(type_: str) -> list[float]:
  """Returns the bytes of every array of a type, wherever it is kept."""
  return [math.prod(dims) * hlo.bits(kind) / 8 for kind, dims, _ in arrays(type_)]


def sizes(type_: str) -> list[float]:
  """Returns the bytes in device memory of every array of a type.

  An array that a TPU keeps on the chip has none there.
  """
  layouts = [layout for _, _, layout in arrays(type_)]
  return [
    0.0 if _ON_CHIP.search(layout) else amount
    for layout, amount in zip(layouts, nbytes(type_), strict=True)
  ]


def size(type_: str) -> float:
  """Returns the bytes in device memory of all arrays of a type."""
  return sum(sizes(type_))
