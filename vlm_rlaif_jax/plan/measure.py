"""Compiles one phase for a target; reads its memory, its traffic and its roofline."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import count, hlo, kernels
from vlm_rlaif_jax.plan.fit import GB
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.plan.targets import Target


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one phase takes. Bytes are of one device, operations over all devices.

  Attributes:
    arguments: bytes that the program reads, by the compiler.
    counted_arguments: the same by our arithmetic.
    other_resident: bytes on the device during the phase that it does not read.
    total: arguments + other_resident + results that reuse nothing + temporaries.
    flops: operations that the mathematics needs (4N for LoRA on a frozen base).
    executed_flops: matrix products of the program as traced, with recomputation and
      with what attention masks.
    compiler_flops: the compiler's own count, loop bodies once; 0 if it gives none.
    flops_loops_once: `executed_flops` counted in the compiler's way.
    collectives: kind -> {'count', 'bytes'}, loops multiplied out.
    network: seconds at the links' full rate.
    roofline_s: seconds at the chip's full rates, for the needed operations.
    roofline_s_with_remat: the same with recomputation.
    decode: of the loops over tokens: 'steps', and of a step, on average over them,
      'kernels', 'bytes' read and written by them, 'needed' bytes (weights and filled
      cache), and 'seconds' by bytes, operations and launches; {} if there is none.
    compiler_error: what the compiler says where the program does not fit.
  """

  name: str
  times: float
  arguments: float = 0
  counted_arguments: float = 0
  other_resident: float = 0
  results: float = 0
  temporary: float = 0
  peak: float = 0
  total: float = 0
  capacity: float = 0
  fits: bool = True
  advice: str = ''
  flops: float = 0
  remat_flops: float = 0
  executed_flops: float = 0
  compiler_flops: float = 0
  flops_loops_once: float = 0
  bytes_moved: float = 0
  collectives: dict = dataclasses.field(default_factory=dict)
  network: float = 0
  roofline_s: float = 0
  roofline_s_with_remat: float = 0
  parts: dict = dataclasses.field(default_factory=dict)
  decode: dict = dataclasses.field(default_factory=dict)
  compiler_error: str = ''


def measure(
  phase: Phase, target: Target, keep: Callable[[str, Any], Any] | None = None
) -> Measured:
  """Compiles one phase and returns what it takes.

  Args:
    keep: called with the name and the executable, to inspect it or to run it.
  """
  traced = phase.program.trace(*phase.arguments)
  jaxpr = traced.jaxpr.jaxpr
  leaves = jax.tree.leaves(phase.arguments)
  reads, iterations = count.used(jaxpr), phase.loop_iterations
  counted_arguments = sum(
    sharding.bytes_per_device(leaf)
    for leaf, is_read in zip(leaves, reads, strict=True)
    if is_read
  )
  leaves_on_device = jax.tree.leaves((phase.resident, phase.arguments))
  not_read = {id(leaf): leaf for leaf in leaves_on_device}
  for leaf, is_read in zip(leaves, reads, strict=True):
    if is_read:
      not_read.pop(id(leaf), None)
  other_resident = sharding.bytes_per_device(list(not_read.values()))
  out = Measured(
    name=phase.name,
    times=phase.times,
    counted_arguments=counted_arguments,
    other_resident=other_resident,
    capacity=target.memory,
    flops=sum(work.flops for work in phase.work),
    remat_flops=sum(work.remat_flops for work in phase.work),
    executed_flops=count.executed(jaxpr, iterations, target.platform),
    flops_loops_once=count.executed(jaxpr, iterations, target.platform, once=True)
    / target.count,
    bytes_moved=sum(work.bytes_moved for work in phase.work),
  )
  if target.flops:
    out = dataclasses.replace(
      out,
      roofline_s=sum(work.seconds(target) for work in phase.work),
      roofline_s_with_remat=sum(work.seconds(target, True) for work in phase.work),
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
  arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  total = arguments + other_resident + results + temporary
  cost = {}
  with contextlib.suppress(Exception):  # not every backend counts
    cost = compiled.cost_analysis() or {}
  collectives = hlo.collectives(text, iterations)
  bytes_sent = sum(
    row['bytes'] * (2 if kind == 'all-reduce' else 1)
    for kind, row in collectives.items()
  )
  fits = not target.memory or total <= target.memory
  return dataclasses.replace(
    out,
    arguments=arguments,
    results=results,
    temporary=temporary,
    peak=getattr(memory, 'peak_memory_in_bytes', 0),
    total=total,
    fits=fits,
    advice='' if fits else _smaller(phase, total, temporary, target.memory),
    compiler_flops=float(cost.get('flops', 0.0)),
    collectives=collectives,
    network=bytes_sent / target.link if target.link else 0.0,
    decode=decode_step(text, phase, target),
  )


def decode_step(text: str, phase: Phase, target: Target) -> dict[str, float]:
  """Returns `Measured.decode` of an optimized module."""
  needed = [work.bytes_moved for work in phase.work if work.name == 'decode']
  if not needed or not target.memory:  # simulated devices have no bandwidth
    return {}
  loops = kernels.Program(text, phase.filled).decode_steps(phase.loop_iterations)
  if not loops:
    return {}
  steps = sum(loop.times for loop in loops)
  rates = target.bandwidth, target.flops, kernels.launch_of(target.platform)

  def mean(of_loop: Callable[[kernels.Loop], float]) -> float:
    return sum(loop.times * of_loop(loop) for loop in loops) / steps

  return {
    'steps': steps,
    'kernels': round(mean(lambda loop: len(loop.kernels))),
    'bytes': mean(lambda loop: loop.bytes_moved),
    'needed': needed[0] / steps,
    'seconds': mean(lambda loop: loop.seconds(*rates)),
  }


def _refused(out: Measured, phase: Phase, message: str) -> Measured:
  """Returns what is known of a program that does not fit; TPUs name its bytes."""
  used = re.search(r'Used ([\d.]+)([GMK]) of', message)
  units = {'G': 2**30, 'M': 2**20, 'K': 2**10}
  total = float(used[1]) * units[used[2]] if used else out.capacity + 1
  line = next(
    (line for line in message.splitlines() if 'Used' in line or 'Exceeded' in line),
    message.splitlines()[0],
  )
  temporary = max(total - out.counted_arguments, 0)
  return dataclasses.replace(
    out,
    total=total + out.other_resident,
    temporary=temporary,
    fits=False,
    advice=_smaller(phase, total + out.other_resident, temporary, out.capacity),
    compiler_error=line.strip()[:200],
  )


def _smaller(phase: Phase, total: float, temporary: float, capacity: float) -> str:
  """Returns the setting that would make a phase fit, if temporaries shrink with it."""
  fixed = total - temporary
  name, value = phase.tuning_flag
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
