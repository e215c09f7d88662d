"""A trace summed up: time per program, per named scope and per operation.

The profiler says which operation of which program ran when; the program's compiled text
says in which scope the operation stands. Times are of the operations themselves: what a
loop contains is not counted again for the loop.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax

from vlm_rlaif_jax.settings.build import UserError

SCOPES = (
  'rollout/prefill',
  'rollout/decode',
  'score/policy',
  'score/reference',
  'score/value',
  'score/reward',
  'update/policy',
  'update/value',
  'update/gradient',
  'update/optimizer',
)
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.M)


class TraceError(UserError):
  """A folder without a trace, or one that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """Seconds, summed over the devices of this host; `devices` of them.

  Attributes:
    span: from the first operation to the last.
  """

  devices: int
  span: float
  programs: dict[str, float]
  scopes: dict[str, float]
  operations: dict[tuple[str, str], float]


def scope_of(op_name: str) -> str:
  """Returns the innermost of `SCOPES` in an operation's path; '' if it has none."""
  position, scope = max((op_name.rfind(scope), scope) for scope in SCOPES)
  return scope if position >= 0 else ''


def scopes_of(text: str) -> dict[str, str]:
  """Returns operation -> path, from compiled text."""
  return dict(_OPERATION.findall(text))


def own_times(events: Iterable[tuple[float, float, object]]) -> list[tuple]:
  """Returns (event, nanoseconds) of (start, duration, event), less nested events."""
  times, stack = [], []
  for start, duration, event in sorted(events, key=lambda e: (e[0], -e[1])):
    while stack and start >= stack[-1][0]:
      _, own, ended = stack.pop()
      times.append((ended, own))
    if stack:
      stack[-1][1] -= duration
    stack.append([start + duration, duration, event])
  times += [(event, own) for _, own, event in stack]
  return times


def read(folder: pathlib.Path) -> Summary:
  """Sums up the newest trace below a folder."""
  files = sorted(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  if not files:
    raise TraceError(
      f'{folder}: no trace; record one with --config.profile.steps=10:13'
    )
  texts: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
  for file in sorted(files[-1].parents[3].glob('hlo/*.txt')):
    name = file.stem.rpartition('.')[0]
    texts[name].append(scopes_of(file.read_text()))
  try:
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
  except RuntimeError as error:
    raise TraceError(f'{files[-1]}: no readable trace ({error})') from None
  # (program, its number) -> (operation, its path if the trace knows it) -> seconds
  ran: dict = collections.defaultdict(lambda: collections.defaultdict(float))
  starts, ends, devices = [], [], set()
  for plane in data.planes:
    for line in plane.lines:
      events = []
      for event in line.events:
        stats = dict(event.stats)
        if 'hlo_op' in stats:
          events.append((event.start_ns, event.duration_ns, stats))
          devices.add((plane.name, stats.get('device_ordinal', 0)))
      if not events:
        continue
      starts.append(min(e[0] for e in events))
      ends.append(max(e[0] + e[1] for e in events))
      for stats, nanoseconds in own_times(events):
        module = str(stats.get('hlo_module', '?')).partition('(')[0]
        operation = str(stats['hlo_op']), str(stats.get('tf_op', ''))
        program = module.removeprefix('jit_'), stats.get('program_id')
        ran[program][operation] += nanoseconds / 1e9
  if not starts:
    raise TraceError(f'{files[-1]}: no operation of a device in it')
  programs: dict = collections.defaultdict(float)
  scopes: dict = collections.defaultdict(float)
  operations: dict = collections.defaultdict(float)
  for (program, _), table in ran.items():
    paths = _text_of({name for name, _ in table}, texts[program])
    for (name, path), seconds in table.items():
      programs[program] += seconds
      scopes[scope_of(paths.get(name) or path) or 'elsewhere'] += seconds
      operations[program, name] += seconds
  span = (max(ends) - min(starts)) / 1e9
  return Summary(len(devices), span, dict(programs), dict(scopes), dict(operations))


def _text_of(names: set[str], texts: list[dict[str, str]]) -> dict[str, str]:
  """Returns that of the texts of one program name that fits a trace best.

  It is the smallest of those with most of the operations `names`.
  """

  def overlap(paths: dict[str, str]) -> tuple[int, int]:
    return len(names & paths.keys()), -len(paths)

  return max(texts, key=overlap, default={})


def lines(summary: Summary, top: int = 15) -> list[str]:
  """Returns the summary as text; tables have `top` rows."""
  total = sum(summary.programs.values())

  def block(title: str, table: dict[Any, float], width: int = 40) -> list[str]:
    rows = sorted(table.items(), key=lambda item: -item[1])[:top]

    def text(key: Any) -> str:
      return ' '.join(key) if isinstance(key, tuple) else key

    return [
      f'{title:<{width}}{"seconds":>10}{"share":>8}',
      *(f'  {text(k):<{width - 2}}{s:10.4f}{s / total:8.1%}' for k, s in rows),
      '',
    ]

  return [
    f'{summary.devices} device(s) of this host, {summary.span:.3f} s from first to '
    f'last operation, {total:.3f} device seconds busy',
    '',
    *block('program', summary.programs),
    *block('scope', summary.scopes),
    *block('operation', summary.operations, 60),
  ]
