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


def executed(jaxpr, trips: int, platform: str, once: bool = False) -> float:
  """Products and sums in the matrix products of a traced program, over all devices.

  Of branches chosen by the data, the longest.

  Args:
    trips: of a loop whose end depends on the data.
    platform: cpu, cuda or tpu; of branches by platform, its own is counted.
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
    inner = [
      executed(getattr(part, 'jaxpr', part), trips, platform, once)
      for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
      if _is_jaxpr(part)
    ]
    if eqn.primitive.name == 'cond':
      inner = [_of_branches(inner, eqn.params.get('branches_platforms'), platform)]
    total += times * sum(inner)
  return total


def _of_branches(counts: list[float], platforms, platform: str) -> float:
  """Of `jax.lax.platform_dependent` the branch that is taken; the default is None."""
  if platforms is None:
    return max(counts)
  named = [i for i, names in enumerate(platforms) if names and platform in names]
  return counts[named[0] if named else platforms.index(None)]


def _is_jaxpr(x) -> bool:
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def used(jaxpr) -> list[bool]:
  """Which arguments a program reads; the others are not passed to the device."""
  seen = {id(v) for v in jaxpr.outvars} | {
    id(v) for eqn in jaxpr.eqns for v in eqn.invars
  }
  return [id(v) in seen for v in jaxpr.invars]
