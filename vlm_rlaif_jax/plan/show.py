"""A plan as text and as data."""

import dataclasses
from collections.abc import Sequence

import jax

from vlm_rlaif_jax.plan.fit import GB
from vlm_rlaif_jax.plan.measure import Measured
from vlm_rlaif_jax.plan.targets import Target


def heading(target: Target, mesh, stage: str) -> str:
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
  """One phase; GB a device (MB on simulated devices), seconds at full rates."""
  unit = GB if m.capacity else GB / 1000
  if not m.capacity:
    fits = ''
  elif m.fits:
    fits = f'yes, {(m.capacity - m.total) / GB:.1f} left'
  else:
    fits = f'NO, {(m.total - m.capacity) / GB:.1f} over'
  return (
    f'{m.name:<17}{(m.arguments or m.by_hand) / unit:8.2f}{m.beside / unit:8.2f}'
    f'{m.temporary / unit:8.2f}{m.total / unit:8.2f}{m.capacity / unit:7.1f}  '
    f'{fits:<14}'
    f'{m.flops / 1e15:8.3f}{m.floor:9.3f}{m.floor_again:9.3f}{m.network:10.3f}'
  )


def details(m: Measured) -> list[str]:
  """What does not fit into the row: parts, collectives, checks, advice."""
  lines = []
  if len(m.parts) > 1:
    shown = ', '.join(f'{name} {s:.3f} s' for name, s in m.parts.items())
    lines.append(f'  floor: {shown}')
  if m.collectives:
    shown = ', '.join(
      f'{kind} {row["count"]:.0f} times {row["bytes"] / GB:.3f} GB'
      for kind, row in sorted(m.collectives.items())
    )
    lines.append(f'  sends a device: {shown}')
  elif not m.refused:
    lines.append('  sends nothing')
  if m.arguments and m.by_hand:
    lines.append(
      f'  arguments by hand {m.by_hand / GB:.2f} GB '
      f'({m.arguments / m.by_hand - 1:+.1%}), executed {m.executed / 1e15:.3f} PFLOP'
      + (
        f'; loops counted once: ours {m.checked / 1e12:.2f}, the compiler '
        f'{m.compiler / 1e12:.2f} TFLOP a device'
        if m.compiler > 0
        else '; the compiler gives no count'
      )
    )
  if m.refused:
    lines.append(f'  compiler: {m.refused}')
  if m.advice:
    lines.append(f'  would fit: {m.advice}')
  return lines


def iteration(measured: Sequence[Measured]) -> dict[str, float]:
  """Seconds at full rates, and operations, of all phases as often as they run."""
  total = lambda field: sum(m.times * getattr(m, field) for m in measured)
  return {
    'flops': total('flops'),
    'floor': total('floor'),
    'floor_again': total('floor_again'),
    'network': total('network'),
  }


def closing(measured: Sequence[Measured], stage: str) -> str:
  sums = iteration(measured)
  what = {
    'ppo': 'a PPO iteration',
    'label': 'a batch of questions (by claims: one of each)',
    'eval': 'a batch of both',
  }.get(stage, 'an optimizer step')
  bad = [m.name for m in measured if not m.fits]
  verdict = 'every phase fits' if not bad else f'does not fit: {", ".join(bad)}'
  return (
    f'{what}: {sums["flops"] / 1e15:.1f} PFLOP, floor {sums["floor"]:.1f} s '
    f'({sums["floor_again"]:.1f} s with recomputation), links {sums["network"]:.1f} s; '
    f'{verdict}'
  )


def data(target: Target, mesh, stage: str, measured: Sequence[Measured]) -> dict:
  return {
    'stage': stage,
    'target': dataclasses.asdict(target),
    'mesh': dict(mesh.shape),
    'jax': jax.__version__,
    'phases': [dataclasses.asdict(m) for m in measured],
    'iteration': iteration(measured),
  }
