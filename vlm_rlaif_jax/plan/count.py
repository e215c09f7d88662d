"""Floors of a phase's parts, and what a traced program does instead of the least."""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True)
class Work:
  """A part of a phase. flops: over all devices; moved: least bytes of one device."""

  name: str
  flops: float
  moved: float = 0.0
  again: float = 0.0  # flops of recomputation, beside `flops`

  def seconds(self, target, recompute: bool = False) -> float:
    """At the chip's full rates: the slower of arithmetic and memory."""
    flops = self.flops + (self.again if recompute else 0)
    return max(flops / (target.count * target.flops), self.moved / target.bandwidth)


def executed(jaxpr, trips: int, once: bool = False) -> float:
  """Products and sums in the matrix products of a traced program, over all devices.

  Args:
    trips: of a loop whose end depends on the data.
    once: count the body of every loop once, as a compiler's own count does.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      size = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
      total += 2.0 * size * math.prod(eqn.outvars[0].aval.shape)
    times = 1
    if not once and eqn.primitive.name == 'scan':
      times = eqn.params['length']
    if not once and eqn.primitive.name == 'while':
      times = trips
    if eqn.primitive.name == 'shard_map':  # shapes inside are those of one device
      mesh, axes = eqn.params['mesh'], eqn.params['newly_manual_axes']
      times = math.prod(mesh.shape[axis] for axis in axes)
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner):
        total += times * executed(getattr(inner, 'jaxpr', inner), trips, once)
  return total


def _is_jaxpr(x) -> bool:
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def used(jaxpr) -> list[bool]:
  """Which arguments a program reads; the others are not passed to the device."""
  seen = {id(v) for v in jaxpr.outvars} | {
    id(v) for eqn in jaxpr.eqns for v in eqn.invars
  }
  return [id(v) in seen for v in jaxpr.invars]
