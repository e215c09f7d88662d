"""Counts the work of a phase: what it needs, and what its traced program executes."""

import dataclasses
import math
from typing import Any

import jax
import jax.extend
import numpy as np


@dataclasses.dataclass(frozen=True)
class Work:
  """A part of a phase.

  Attributes:
    flops: operations that it needs, over all devices.
    bytes_moved: the fewest bytes that one device reads and writes.
    remat_flops: operations of recomputation, in addition to `flops`.
  """

  name: str
  flops: float
  bytes_moved: float = 0.0
  remat_flops: float = 0.0

  def seconds(self, target: Any, recompute: bool = False) -> float:
    """Returns the roofline: the slower of arithmetic and memory at full rates."""
    flops = self.flops + (self.remat_flops if recompute else 0)
    return max(
      flops / (target.count * target.flops), self.bytes_moved / target.bandwidth
    )


def executed(
  jaxpr: Any, loop_iterations: int, platform: str, once: bool = False
) -> float:
  """Returns multiplications and additions of the matrix products, over all devices.

  Of branches that the data choose, the longest is counted.

  Args:
    loop_iterations: of a loop that does not state the most that it can take.
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
      times = _iterations(eqn.params['cond_jaxpr'].jaxpr, loop_iterations)
    if eqn.primitive.name == 'shard_map':  # shapes inside are those of one device
      mesh, axes = eqn.params['mesh'], eqn.params['newly_manual_axes']
      times = math.prod(mesh.shape[axis] for axis in axes)
    inner = [
      executed(getattr(part, 'jaxpr', part), loop_iterations, platform, once)
      for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
      if _is_jaxpr(part)
    ]
    if eqn.primitive.name == 'cond':
      inner = [_of_branches(inner, eqn.params.get('branches_platforms'), platform)]
    total += times * sum(inner)
  return total


def _iterations(condition: Any, loop_iterations: int) -> int:
  """Returns the only integer in a loop's condition, as `hlo` does; else the default."""
  numbers = {
    int(x.val)
    for eqn in condition.eqns
    for x in eqn.invars
    if isinstance(x, jax.extend.core.Literal)
    and getattr(x.aval, 'dtype', None) == np.int32
  }
  return numbers.pop() if len(numbers) == 1 else loop_iterations


def _of_branches(counts: list[float], platforms: Any, platform: str) -> float:
  """Returns the count of the branch of `jax.lax.platform_dependent` that is taken."""
  if platforms is None:
    return max(counts)
  named = [i for i, names in enumerate(platforms) if names and platform in names]
  return counts[named[0] if named else platforms.index(None)]


def _is_jaxpr(x: Any) -> bool:
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def used(jaxpr: Any) -> list[bool]:
  """Returns which arguments a program reads; others are not passed to the device."""
  read = {id(v) for v in jaxpr.outvars} | {
    id(v) for eqn in jaxpr.eqns for v in eqn.invars
  }
  return [id(v) in read for v in jaxpr.invars]
