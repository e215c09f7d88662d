"""One phase compiled for a target: what it takes, sends and cannot be faster than."""

import contextlib
import dataclasses
import re
from typing import Any

import jax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import count, hlo
from vlm_rlaif_jax.plan.fit import GB
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.plan.targets import Target


@dataclasses.dataclass(frozen=True)
class Measured:
  """Bytes are of one device, operations over all.

  Attributes:
    arguments: by the compiler; by_hand: of the same arguments, by our arithmetic.
    beside: lies on the device during the phase and is not read by it.
    total: arguments + beside + results that reuse nothing + temporaries.
    flops: needed (4N for LoRA); executed: matrix products of the program as traced,
      recomputation and what attention masks included; compiler: its own count,
      loop bodies once, 0 where it gives none; checked: ours counted in that way.
    collectives: kind -> {'count', 'bytes'}, loops multiplied out.
    network: seconds at the links' full rate; floor: at the chip's, for the needed
      operations; floor_again: with recomputation.
    refused: the compiler's words where the program does not fit.
  """

  name: str
  times: float
  arguments: float = 0
  by_hand: float = 0
  beside: float = 0
  results: float = 0
  temporary: float = 0
  peak: float = 0
  total: float = 0
  capacity: float = 0
  fits: bool = True
  advice: str = ''
  flops: float = 0
  again: float = 0
  executed: float = 0
  compiler: float = 0
  checked: float = 0
  moved: float = 0
  collectives: dict = dataclasses.field(default_factory=dict)
  network: float = 0
  floor: float = 0
  floor_again: float = 0
  parts: dict = dataclasses.field(default_factory=dict)
  refused: str = ''


def measure(phase: Phase, target: Target, keep=None) -> Measured:
  """Compiles one phase and reads the result.

  Args:
    keep: called with the name and the executable, for those who want to look, or run.
  """
  traced = phase.program.trace(*phase.arguments)
  jaxpr = traced.jaxpr.jaxpr
  leaves = jax.tree.leaves(phase.arguments)
  reads = count.used(jaxpr)
  by_hand = sum(
    sharding.bytes_per_device(leaf)
    for leaf, is_read in zip(leaves, reads, strict=True)
    if is_read
  )
  held = {id(leaf): leaf for leaf in jax.tree.leaves((phase.resident, phase.arguments))}
  for leaf, is_read in zip(leaves, reads, strict=True):
    if is_read:
      held.pop(id(leaf), None)
  beside = sharding.bytes_per_device(list(held.values()))
  out = Measured(
    name=phase.name,
    times=phase.times,
    by_hand=by_hand,
    beside=beside,
    capacity=target.memory,
    flops=sum(work.flops for work in phase.work),
    again=sum(work.again for work in phase.work),
    executed=count.executed(jaxpr, phase.trips, target.platform),
    checked=count.executed(jaxpr, phase.trips, target.platform, once=True)
    / target.count,
    moved=sum(work.moved for work in phase.work),
  )
  if target.flops:
    out = dataclasses.replace(
      out,
      floor=sum(work.seconds(target) for work in phase.work),
      floor_again=sum(work.seconds(target, True) for work in phase.work),
      parts={work.name: work.seconds(target) for work in phase.work},
    )
  try:
    compiled = phase.program.compile(*phase.arguments)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return _refused(out, phase, str(error))
  text = compiled.as_text() or ''
  if keep:
    keep(phase.name, compiled)
  memory: Any = compiled.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = memory.argument_size_in_bytes + beside + results + memory.temp_size_in_bytes
  cost = {}
  with contextlib.suppress(Exception):  # not every backend counts
    cost = compiled.cost_analysis() or {}
  sent = hlo.collectives(text, phase.trips)
  bytes_sent = sum(
    row['bytes'] * (2 if kind == 'all-reduce' else 1) for kind, row in sent.items()
  )
  fits = not target.memory or total <= target.memory
  return dataclasses.replace(
    out,
    arguments=memory.argument_size_in_bytes,
    results=results,
    temporary=memory.temp_size_in_bytes,
    peak=getattr(memory, 'peak_memory_in_bytes', 0),
    total=total,
    fits=fits,
    advice='' if fits else advise(phase, total, memory.temp_size_in_bytes, target),
    compiler=float(cost.get('flops', 0.0)),
    collectives=sent,
    network=bytes_sent / target.link if target.link else 0.0,
  )


def _refused(out: Measured, phase: Phase, said: str) -> Measured:
  """TPU compilers name what the program would use; the rest stays unknown."""
  used = re.search(r'Used ([\d.]+)([GMK]) of', said)
  units = {'G': 2**30, 'M': 2**20, 'K': 2**10}
  total = float(used[1]) * units[used[2]] if used else out.capacity + 1
  line = next(
    (line for line in said.splitlines() if 'Used' in line or 'Exceeded' in line),
    said.splitlines()[0],
  )
  temporary = max(total - out.by_hand, 0)
  return dataclasses.replace(
    out,
    total=total + out.beside,
    temporary=temporary,
    fits=False,
    advice=_smaller(phase, total + out.beside, temporary, out.capacity),
    refused=line.strip()[:200],
  )


def advise(phase: Phase, total: float, temporary: float, target: Target) -> str:
  return _smaller(phase, total, temporary, target.memory)


def _smaller(phase: Phase, total: float, temporary: float, capacity: float) -> str:
  """The setting that would make a phase fit, if temporaries shrink in proportion."""
  fixed = total - temporary
  name, value = phase.knob
  if fixed >= capacity or not name:
    return (
      f'no batch: without one it is {fixed / GB:.1f} GB; shard the bases (fsdp, tensor)'
    )
  factor = 2
  while temporary / factor + fixed > capacity and factor < 64:
    factor *= 2
  if name.endswith('accumulate'):
    return f'--{name}={value * factor}'
  if value % factor:
    return 'a layout with more fsdp or tensor'
  return f'--{name}={value // factor}'
