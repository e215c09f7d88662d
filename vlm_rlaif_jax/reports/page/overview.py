"""What was run on what, and where runs that are compared differ."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports.page import html
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import BROKEN, STAGES, RunFiles
from vlm_rlaif_jax.settings import stages

# Of an identity: what is no setting, but the contents of a file.
CONTENTS = ('weights', 'tokenizer', 'contents of', 'text of', 'total_steps')


def build(runs: Sequence[RunFiles]) -> Html:
  """Returns the tables of runs, of settings that differ, and of all settings."""
  return html.join(
    [
      _runs_table(runs),
      *(_differences(runs) if len(runs) > 1 else ()),
      _stage_lines(runs),
      _all_settings(runs),
    ]
  )


def _runs_table(runs: Sequence[RunFiles]) -> Html:
  """Returns a table with a run a column: settings, data, devices, versions."""
  facts = [run.attempt('the overview', _facts, run) or {} for run in runs]
  names = list(dict.fromkeys(name for fact in facts for name in fact))
  rows = [(name, *(fact.get(name, '') for fact in facts)) for name in names]
  head = [
    '',
    *(tag('span', run.label, class_=f'run c{i}') for i, run in enumerate(runs)),
  ]
  return html.table(head, rows, 'What was run on what', class_='facts')


def _facts(run: RunFiles) -> dict[str, Any]:
  """Returns what the table says of a run, by title."""
  lineage, summaries = run.lineage, run.summaries
  environment = _environment(run)
  world = {k: v for k, v in lineage.items() if k.startswith('world.')}
  data = lineage.get('data.root') or (
    'the built-in video world' if world else 'not recorded'
  )
  if lineage.get('data.train'):
    data = f'{data}, {lineage["data.train"]}'
  if world:
    names = ('sft', 'preference', 'rl', 'test')
    counts = ', '.join(str(world.get(f'world.{name}', '?')) for name in names)
    data = f'{data}; clips of SFT, preferences, RL, test: {counts}'
  versions = environment.get('versions')
  return {
    'Folder': str(run.folder),
    'Size': lineage.get('model.name', run.folder.name),
    'Seed': run.seed if run.seed is not None else 'not recorded',
    'Data': data,
    'Frames of a video': lineage.get('data.frames', 'not recorded'),
    'Base': lineage.get('base') or _own_base(lineage),
    'Network': _network(lineage),
    'Stages done': ', '.join(s for s in STAGES if s in summaries) or 'none',
    'Finished': _date(run),
    'Devices': environment.get('devices', 'not recorded'),
    'Versions': ', '.join(f'{k} {v}' for k, v in versions.items())
    if isinstance(versions, dict)
    else 'not recorded',
  }


def _own_base(lineage: Mapping[str, Any]) -> str:
  """Returns what a base without a name is."""
  return 'that of the tiny size' if lineage else 'not recorded'


def _network(lineage: Mapping[str, Any]) -> str:
  """Returns the shape of the language model."""
  names = ('layers', 'width', 'heads')
  values = [lineage.get(f'model.llama.{name}') for name in names]
  if None in values:
    return 'not recorded'
  layers, width, heads = values
  return f'{layers} layers, {width} wide, {heads} heads'


def _environment(run: RunFiles) -> dict[str, Any]:
  """Returns what the last stage that says it ran on; {} in runs of before."""
  for stage in reversed(STAGES):
    environment = run.summaries.get(stage, {}).get('environment')
    if isinstance(environment, dict):
      return environment
  return {}


def _date(run: RunFiles) -> str:
  """Returns when the last stage ended; of runs that do not say it, by their files."""
  date = _environment(run).get('date')
  if date:
    return str(date)
  times = [
    path.stat().st_mtime
    for stage in run.summaries
    if (path := run.folder / stage / 'summary.json').exists()
  ]
  if not times:
    return 'not done'
  last = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
  return f'{last:%Y-%m-%d %H:%M} UTC (date of the files)'


def _differences(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns the settings by which runs differ, and what follows from them."""
  rows = []
  for stage in STAGES:
    settings = [run.settings.get(stage, {}) for run in runs]
    names = sorted(set().union(*settings))
    for name in names:
      values = [one.get(name, '') for one in settings]
      if all(settings) and len({_text(value) for value in values}) > 1:
        rows.append((stage, name, values))
  shared: dict[tuple[str, str], list[str]] = {}  # one row for what all stages share
  for stage, name, values in rows:
    shared.setdefault((name, repr(values)), []).append(stage)
  body = [
    (
      name,
      ', '.join(shared[name, repr(values)]),
      *(tag('code', _text(v)) for v in values),
    )
    for stage, name, values in rows
    if shared[name, repr(values)][0] == stage
  ]
  title = tag('h3', 'Where the runs differ')
  if not body:
    line = 'In no recorded setting, and in no contents of what they read.'
    return [title, tag('p', line)]
  chosen = [row for row in body if not str(row[0]).startswith(CONTENTS)]
  follows = [row for row in body if str(row[0]).startswith(CONTENTS)]
  head = ['Setting', 'Stages', *(run.label for run in runs)]
  parts = [title]
  if chosen:
    parts.append(html.table(head, chosen, 'Settings that differ'))
  if follows:
    caption = 'Contents that differ: what stages read, by fingerprint'
    parts.append(html.table(head, follows, caption))
  return parts


def _text(value: Any) -> str:
  """Returns a setting as text."""
  return ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _stage_lines(runs: Sequence[RunFiles]) -> Html:
  """Returns the closing line of every stage that is done, and its lineage."""
  rows = []
  for stage in STAGES:
    for run in runs:
      summary = run.summaries.get(stage)
      if summary is None:
        continue
      print_ = tag('code', summary.get('fingerprint', ''))
      name = [run.label] if len(runs) > 1 else []
      rows.append((stage, *name, _line(stage, summary), print_))
  name = ['Run'] if len(runs) > 1 else []
  head = ['Stage', *name, 'Result', 'Fingerprint of what it left']
  return html.join(
    [
      tag('h3', 'Stages'),
      html.table(head, rows, 'What every stage left', class_='facts'),
    ]
  )


def _line(stage: str, summary: Mapping[str, Any]) -> str:
  """Returns the closing line of a stage; of earlier versions, which lack fields, ''."""
  try:
    line = stages.every()[stage].summary_line(dict(summary))
    return line.replace(' [nan%, nan%]', '')  # of before there were intervals
  except BROKEN:
    return 'done; the summary is that of another version'


def _all_settings(runs: Sequence[RunFiles]) -> Html:
  """Returns every recorded setting, folded up."""
  parts = []
  for stage in STAGES:
    settings = [run.settings.get(stage, {}) for run in runs]
    names = sorted(set().union(*settings))
    if not names:
      continue
    rows = [
      (name, *(tag('code', _text(s.get(name, ''))) for s in settings)) for name in names
    ]
    head = ['Setting', *(run.label for run in runs)]
    parts.append(
      tag(
        'details',
        tag('summary', f'{stage}: {len(names)} settings'),
        html.table(head, rows, f'Settings of {stage}'),
      )
    )
  if not parts:
    return Html('')
  return html.join([tag('h3', 'All settings'), *parts])
