"""The numbers: the run's own questions, and the paper's tables with ours beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports.page import axes, html, paper, plots
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.paper import Column, PaperTable
from vlm_rlaif_jax.reports.page.runs import RunFiles
from vlm_rlaif_jax.settings.eval import MODELS

LONGEST_PLOT = 9  # rows of a plot of kinds; more of them are two plots
NAMES = {'base': 'base', 'sft': 'SFT', 'init': 'init', 'rlaif': 'RLAIF'}


def headline(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns a tile a run: how RLAIF changed the share of right answers."""
  tiles = []
  for place, run in enumerate(runs):
    tile = run.attempt('the headline', _tile, run, place)
    tiles += [tile] if tile else []
  return tiles


def _tile(run: RunFiles, place: int) -> Html | None:
  """Returns the tile of a run; None where SFT and RLAIF were not both evaluated."""
  summary = run.summaries.get('eval', {})
  if 'rlaif' not in summary or 'sft' not in summary:
    return None
  before, after = (summary[name]['qa_accuracy'] for name in ('sft', 'rlaif'))
  low, high = summary['qa_change_interval']
  sure = 'better' if low > 0 else 'worse' if high < 0 else 'not decided'
  return tag(
    'div',
    tag('span', f'{run.label}, seed {run.seed}', class_=f'run c{place}'),
    tag('p', tag('b', f'{100 * (after - before):+.1f}'), ' points', class_='figure'),
    tag(
      'p',
      f'questions answered right: SFT {html.share(before)} %, RLAIF '
      f'{html.share(after)} %',
    ),
    tag(
      'p',
      f'95 % interval of the change [{100 * low:+.1f}, {100 * high:+.1f}]: {sure}',
      class_=f'small {sure.replace(" ", "-")}',
    ),
    class_='tile',
  )


def build(runs: Sequence[RunFiles]) -> Html:
  """Returns the tables and plots of evaluations."""
  own = own_questions(runs)
  parts = [own, *benchmark_tables(runs), tag('h3', "The paper's tables")]
  parts.append(
    tag(
      'p',
      'Rows of this page carry run and model, the 95 % interval over videos and the '
      'number of items; blank: not run. Numbers with ~ were read off a chart. A judge is '
      'part of a number: compare rows of one judge only.',
      class_='lead',
    )
  )
  tables = [paper_table(one, runs) for one in paper.TABLES]
  parts.append(tag('div', *tables, class_='tables'))
  return html.join(parts)


def own_questions(runs: Sequence[RunFiles]) -> Html:
  """Returns accuracy by model, and the change from SFT to RLAIF by kind."""
  evaluated = [run for run in runs if 'eval' in run.summaries]
  if not evaluated:
    return tag('p', 'No evaluation has run.')
  rows = []
  for place, run in enumerate(runs):
    if run in evaluated:
      rows += run.attempt('the table of its questions', _own_rows, run, place) or []
  head = [
    'Run', 'Model', 'Questions right, %', 'long, %', 'short, %', 'claims invented, %',
    'facts recalled, %', 'n',
  ]  # fmt: skip
  drawings = [_accuracy_plot(runs), *_change_plots(runs)]
  return html.join(
    [
      tag('h3', 'Held-out questions'),
      html.table(head, rows, 'Held-out questions, by model'),
      tag('div', *(one for one in drawings if one), class_='plots'),
    ]
  )


def _own_rows(run: RunFiles, place: int) -> list[list[Any]]:
  """Returns a row for each model of a run."""
  rows = []
  for name in MODELS:
    result = run.summaries['eval'].get(name)
    if not isinstance(result, dict):
      continue
    rows.append(
      [
        tag('span', run.label, class_=f'run c{place}'),
        NAMES[name],
        _with_interval(result.get('qa_accuracy'), result.get('qa_interval')),
        html.share(result.get('long', {}).get('accuracy')),
        html.share(result.get('short', {}).get('accuracy')),
        html.share(result.get('hallucination_rate')),
        html.share(result.get('fact_recall')),
        html.number(result.get('n')),
      ]
    )
  return rows


def _with_interval(value: Any, interval: Any, percent: bool = True) -> Html | str:
  """Returns a number with its interval in small; '' where there is none."""
  scale = 100 if percent else 1
  if not html.is_number(value):
    return ''
  text = f'{scale * value:.1f}' if percent else f'{value:.2f}'
  if not isinstance(interval, list) or not all(map(html.is_number, interval)):
    return text
  low, high = interval
  ends = (
    f'{scale * low:.1f}, {scale * high:.1f}' if percent else f'{low:.2f}, {high:.2f}'
  )
  return html.join([text, ' ', tag('small', f'[{ends}]')])


def _accuracy_plot(runs: Sequence[RunFiles]) -> Html | None:
  """Returns the accuracy of every model with its interval."""
  rows = []
  for name in MODELS:
    group = [
      {
        'value': 100 * result['qa_accuracy'],
        'interval': [100 * end for end in result['qa_interval']],
        'color': place,
        'name': run.label,
      }
      for place, run in enumerate(runs)
      if isinstance(result := run.summaries.get('eval', {}).get(name), dict)
      and _is_interval(result.get('qa_interval'))
      and html.is_number(result.get('qa_accuracy'))
    ]
    if group:
      rows.append((NAMES[name], group))
  note = '95 % intervals, resampled over videos'
  return plots.intervals(
    'Questions answered right', rows, note=note, legend=run_legend(runs)
  )


def _is_interval(value: Any) -> bool:
  """Returns whether a value of a file is (low, high)."""
  return isinstance(value, list) and len(value) == 2 and all(map(html.is_number, value))


def run_legend(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns the colors of the runs; none for a single one."""
  if len(runs) < 2:
    return []
  return axes.swatches(
    [(run.label, f'c{i % axes.COLORS}') for i, run in enumerate(runs)]
  )


def _change_plots(runs: Sequence[RunFiles]) -> list[Html | None]:
  """Returns the change to RLAIF by kind of question, from SFT and from init."""
  drawings = []
  for before in ('sft', 'init'):
    changes = [
      (place, run, run.summaries.get('eval', {}).get('changes', {}).get(before, {}))
      for place, run in enumerate(runs)
    ]
    kinds = list(dict.fromkeys(kind for _, _, one in changes for kind in one))
    rows = []
    for kind in kinds:
      group = [
        {
          'value': 100 * one[kind]['change'],
          'interval': [100 * end for end in one[kind]['interval']],
          'color': place,
          'name': run.label,
        }
        for place, run, one in changes
        if isinstance(one.get(kind), dict) and _is_interval(one[kind].get('interval'))
      ]
      if group:
        rows.append((kind, group))
    ends = [end for _, group in rows for one in group for end in one['interval']]
    size = LONGEST_PLOT if len(rows) <= 2 * LONGEST_PLOT else -(-len(rows) // 2)
    for first in range(0, len(rows), size):
      drawings.append(
        plots.intervals(
          f'Change from {NAMES[before]} to RLAIF, by kind of question',
          rows[first : first + size],
          x_title='points',
          zero=True,
          span=ends,
          legend=run_legend(runs),
          note='right of 0: RLAIF answers more of them right',
        )
      )
  return drawings


# ---------------------------------------------------------------- benchmarks


def benchmark_tables(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns a table a benchmark: every metric of every model, and its judge."""
  names = list(
    dict.fromkeys(
      name for run in runs for name in run.attempt('benchmarks', _benchmarks, run) or {}
    )
  )
  if not names:
    return []
  parts = [tag('h3', 'Benchmarks')]
  for name in names:
    for place, run in enumerate(runs):
      one = (run.attempt('benchmarks', _benchmarks, run) or {}).get(name)
      if one is not None:
        part = run.attempt(f'benchmark {name}', _benchmark, run, place, name, one)
        parts += [part] if part else []
  return parts


def _benchmarks(run: RunFiles) -> dict[str, dict[str, Any]]:
  """Returns the benchmarks of a run; {} in runs of before there were any."""
  return dict(run.summaries.get('eval', {}).get('benchmarks') or {})


def _benchmark(run: RunFiles, place: int, name: str, one: Mapping[str, Any]) -> Html:
  """Returns the table of one benchmark of one run."""
  models = [m for m in (*MODELS, *one['models']) if m in one['models']]
  models = list(dict.fromkeys(models))
  metrics = list(dict.fromkeys(x for m in models for x in one['models'][m]))
  percent = {
    metric: one.get('family') != 'generative' and _is_share(metric, one, models)
    for metric in metrics
  }
  rows = []
  for model in models:
    cells = [
      _cell(one['models'][model].get(metric), percent[metric]) for metric in metrics
    ]
    rows.append([NAMES.get(model, model), *cells])
  for before, changes in (one.get('changes') or {}).items():
    cells = [_change_cell(changes.get(metric), percent[metric]) for metric in metrics]
    rows.append([f'{NAMES.get(before, before)} → RLAIF', *cells])
  heads = [f'{m}, %' if percent[m] else m for m in metrics]
  return html.join(
    [
      html.table(['Model', *heads], rows, f'{name}, {run.label}'),
      tag('p', _scope(one), class_='small'),
    ]
  )


def _is_share(metric: str, one: Mapping[str, Any], models: Sequence[str]) -> bool:
  """Returns whether all values of a metric are shares, and its name is no count."""
  cells = [one['models'][model].get(metric) for model in models]
  values = [cell['value'] for cell in cells if isinstance(cell, dict)]
  counts = ('score', 'rank', 'length', 'words', 'tokens', 'reward')
  named_count = any(word in metric for word in counts)
  return not named_count and all(html.is_number(v) and 0 <= v <= 1 for v in values)


def _cell(cell: Any, percent: bool) -> Html | str:
  """Returns the value of a metric with its interval, and what has no score."""
  if not isinstance(cell, dict):
    return ''
  text = _with_interval(cell.get('value'), cell.get('interval'), percent)
  if cell.get('unscored'):
    return html.join([text, tag('small', f' {cell["unscored"]} unscored')])
  return text


def _change_cell(cell: Any, percent: bool) -> Html | str:
  """Returns a change with its interval."""
  if not isinstance(cell, dict):
    return ''
  text = _with_interval(cell.get('change'), cell.get('interval'), percent)
  sign = (
    '+' if text and html.is_number(cell.get('change')) and cell['change'] > 0 else ''
  )
  return html.join([sign, text]) if text else ''


def _scope(one: Mapping[str, Any]) -> str:
  """Returns what was scored of a benchmark, and by which judge."""
  missing = one.get('missing')
  count = len(missing) if isinstance(missing, list) else missing
  text = f'{html.number(one.get("items"))} of {html.number(one.get("of"))} rows scored'
  if one.get('videos'):
    text += f', {html.number(one["videos"])} videos'
  if count:
    text += f'; {count} videos are missing'
  judge = one.get('judge')
  if isinstance(judge, dict):
    text += '; judge: ' + ', '.join(f'{k} {v}' for k, v in judge.items() if v != '')
  else:
    text += '; no judge'
  return f'{text}.'


def paper_table(one: PaperTable, runs: Sequence[RunFiles]) -> Html:
  """Returns a table of the paper with the rows of the runs below."""
  head = ['', *(column.title for column in one.columns)]
  rows: list[list[Any]] = []
  for name, cells in one.rows:
    style = 'paper' if name in one.own else None
    title = f'{name} (paper)' if name in one.own else name
    rows.append([tag('th', title, scope='row', class_=style), *cells])
  for place, run in enumerate(runs):
    rows += run.attempt(f'its row of {one.title}', _run_rows, one, run, place) or []
  return tag(
    'div',
    tag('h4', one.title),
    html.table(head, rows, one.title, class_='paper-table'),
    tag('p', one.note, class_='small'),
  )


def _run_rows(one: PaperTable, run: RunFiles, place: int) -> list[list[Any]]:
  """Returns the rows of a run: SFT and RLAIF always, the others where they ran."""
  benchmarks = _benchmarks(run)
  rows = []
  for name in MODELS:
    cells = [_paper_cell(benchmarks, column, name) for column in one.columns]
    if name in ('sft', 'rlaif') or any(cells):
      title = html.join(
        [tag('span', run.label, class_=f'run c{place}'), ' ', NAMES[name]]
      )
      rows.append([tag('th', title, scope='row', class_='ours'), *cells])
  return rows


def _paper_cell(
  benchmarks: Mapping[str, Any], column: Column, model: str
) -> Html | str:
  """Returns the value of a model in a column; '' where it was not run."""
  metrics = benchmarks.get(column.benchmark, {}).get('models', {}).get(model, {})
  for name in column.metrics:
    if name in metrics:
      cell = metrics[name]
      text = _cell(cell, column.percent)
      if text and html.is_number(cell.get('n')):
        return html.join([text, tag('small', f' n {cell["n"]:,}')])
      return text
  return ''
