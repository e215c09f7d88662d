"""Prints a plan as a table, and returns it as data."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from vlm_rlaif_jax.plan import graphs, kernels, measure
from vlm_rlaif_jax.plan.fit import GB
from vlm_rlaif_jax.plan.measure import Measured
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.plan.targets import Target
from vlm_rlaif_jax.settings.build import UserError


def heading(target: Target, mesh: Mesh, stage: str) -> str:
  """Returns the first line: chips, their rates, the mesh and the version of JAX."""
  shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  rates = (
    f'{target.memory / GB:.1f} GB, {target.flops / 1e12:.0f} TFLOP/s bf16, '
    f'{target.bandwidth / 1e12:.2f} TB/s a chip'
    if target.flops
    else target.note
  )
  return (
    f'{stage} on {target.name}: {target.count} x {target.chip} ({rates}), '
    f'mesh {shape}, jax {jax.__version__}'
  )


COLUMNS = (
  f'{"phase":<17}{"args":>8}{"beside":>8}{"temp":>8}{"total":>8}{"of":>7}  '
  f'{"fits":<14}{"PFLOP":>8}{"floor s":>9}{"remat s":>9}{"network s":>10}'
)


def row(m: Measured) -> str:
  """Returns the row of a phase: GB a device (MB if simulated), roofline seconds."""
  unit = GB if m.capacity else GB / 1000
  if not m.capacity:
    fits = ''
  elif m.fits:
    fits = f'yes, {(m.capacity - m.total) / GB:.1f} left'
  else:
    fits = f'NO, {(m.total - m.capacity) / GB:.1f} over'
  return (
    f'{m.name:<17}{(m.arguments or m.counted_arguments) / unit:8.2f}'
    f'{m.other_resident / unit:8.2f}'
    f'{m.temporary / unit:8.2f}{m.total / unit:8.2f}{m.capacity / unit:7.1f}  '
    f'{fits:<14}'
    f'{m.flops / 1e15:8.3f}{m.roofline_s:9.3f}{m.roofline_s_with_remat:9.3f}'
    f'{m.network:10.3f}'
  )


def details(m: Measured) -> list[str]:
  """Returns the lines below a row: parts, collectives, checks, advice."""
  lines = []
  if len(m.parts) > 1:
    parts = ', '.join(f'{name} {s:.3f} s' for name, s in m.parts.items())
    lines.append(f'  floor: {parts}')
  if m.collectives:
    collectives = ', '.join(
      f'{kind} {row["count"]:.0f} times {row["bytes"] / GB:.3f} GB'
      for kind, row in sorted(m.collectives.items())
    )
    lines.append(f'  sends a device: {collectives}')
  elif not m.compiler_error:
    lines.append('  sends nothing')
  if m.arguments and m.counted_arguments:
    lines.append(
      f'  arguments as counted {m.counted_arguments / GB:.2f} GB '
      f'({m.arguments / m.counted_arguments - 1:+.1%}), '
      f'executed {m.executed_flops / 1e15:.3f} PFLOP'
      + (
        f'; loops counted once: ours {m.flops_loops_once / 1e12:.2f}, the compiler '
        f'{m.compiler_flops / 1e12:.2f} TFLOP a device'
        if m.compiler_flops > 0
        else '; the compiler gives no count'
      )
    )
  lines += _decode_step(m.decode)
  if m.compiler_error:
    lines.append(f'  compiler: {m.compiler_error}')
  if m.advice:
    lines.append(f'  would fit: {m.advice}')
  return lines


def _decode_step(step: dict[str, float]) -> list[str]:
  """Returns the line on `Measured.decode`, if there is one."""
  if not step:
    return []
  return [
    f'  a decode step, of {step["steps"]:.0f}: {step["kernels"]} kernels, '
    f'{step["bytes"] / GB:.2f} GB moved, {step["bytes"] / step["needed"]:.2f} times '
    f'weights and filled cache; {1e3 * step["seconds"]:.2f} ms by bytes, operations '
    f'and launches'
  ]


def file_name(phase: str) -> str:
  """Returns the name of the file that `--hlo` keeps a compiled phase in."""
  return f'{phase.replace(" ", "_")}.txt'


def texts(folder: pathlib.Path, phases: Sequence[Phase], target: Target) -> list[str]:
  """Returns the lines on compiled programs that were kept: decode steps, and `loops`.

  Raises:
    UserError: none of them is in the folder.
  """
  lines = []
  for phase in phases:
    path = folder / file_name(phase.name)
    if path.is_file():
      text = path.read_text()
      lines += [
        phase.name,
        *_decode_step(measure.decode_step(text, phase, target)),
        *loops(text, phase, target, folder),
      ]
  if not lines:
    names = ', '.join(file_name(phase.name) for phase in phases)
    raise UserError(f'--texts={folder}: has none of {names}; --hlo writes them')
  return lines


def loops(text: str, phase: Phase, target: Target, folder: pathlib.Path) -> list[str]:
  """Returns lines on the kernels of a compiled phase, loop by loop.

  Args:
    text: its optimized module.
    folder: of XLA's dump, which has the CUDA graphs of a program for GPUs.
  """
  program = kernels.Program(text, phase.filled)
  every = program.loops(phase.loop_iterations)
  lines = kernels.lines(
    every,
    target.bandwidth or 1.0,
    target.flops or 1.0,
    kernels.launch_of(target.platform),
  )
  starts = graphs.longest_loop(folder, f'jit_{phase.program.name}')
  if starts:
    lines.append(
      f'the loop of most kernels starts {starts.graphs} CUDA graphs of '
      f'{starts.captured} kernels, and {starts.single} kernels alone'
    )
  return [f'  {line}' for line in lines]


def iteration(measured: Sequence[Measured]) -> dict[str, float]:
  """Returns operations and roofline seconds of all phases, as often as they run."""
  fields = ('flops', 'roofline_s', 'roofline_s_with_remat', 'network')
  return {name: sum(m.times * getattr(m, name) for m in measured) for name in fields}


def closing(
  measured: Sequence[Measured], stage: str, absent: Sequence[str] = ()
) -> str:
  """Returns the last line: the sum of an iteration or step, and whether all fits.

  Args:
    absent: names of phases that were not planned, so that the sum lacks them.
  """
  sums = iteration(measured)
  unit = {
    'ppo': 'a PPO iteration',
    'label': 'a batch of questions (by claims: one of each)',
    'eval': 'a batch of both, or one model on the published test sets',
  }.get(stage, 'an optimizer step')
  bad = [m.name for m in measured if not m.fits]
  fits = 'these fit' if absent else 'every phase fits'
  verdict = fits if not bad else f'does not fit: {", ".join(bad)}'
  if absent:
    unit = f'{unit}, without {", ".join(absent)}'
  return (
    f'{unit}: {sums["flops"] / 1e15:.1f} PFLOP, floor {sums["roofline_s"]:.1f} s '
    f'({sums["roofline_s_with_remat"]:.1f} s with recomputation), '
    f'links {sums["network"]:.1f} s; {verdict}'
  )


def data(
  target: Target,
  mesh: Mesh,
  stage: str,
  measured: Sequence[Measured],
  absent: Sequence[str] = (),
) -> dict:
  """Returns a plan as what `--json` writes.

  Args:
    absent: as in `closing`.
  """
  return {
    'stage': stage,
    'target': dataclasses.asdict(target),
    'mesh': dict(mesh.shape),
    'jax': jax.__version__,
    'phases': [dataclasses.asdict(m) for m in measured],
    'iteration': iteration(measured),
    **({'iteration_lacks': list(absent)} if absent else {}),
  }
