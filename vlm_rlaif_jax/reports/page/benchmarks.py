"""Tables of benchmarks, and those of the paper with the numbers of runs below."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.evals.judges import names
from vlm_rlaif_jax.reports.page import former, html
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.paper import Column, PaperTable
from vlm_rlaif_jax.reports.page.run_files import RunFiles
from vlm_rlaif_jax.settings.eval import MODELS

SHARES = ('accuracy',)  # metrics of judges that are in percent
NAMES = {'base': 'base', 'sft': 'SFT', 'init': 'init', 'rlaif': 'RLAIF'}


def tables(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns a table a benchmark: every metric of every model, and its judge."""
  names = list(
    dict.fromkeys(
      name for run in runs for name in run.attempt('benchmarks', _benchmarks, run) or {}
    )
  )
  if not names:
    return []
  parts: list[Html] = []
  for name in names:
    for run in runs:
      one = (run.attempt('benchmarks', _benchmarks, run) or {}).get(name)
      other = run.attempt('other judges', _of_other_judges, run, name) or []
      for entry in [one, *other] if one is not None else other:
        title = name if len(runs) == 1 else f'{name}, {run.label}'
        part = run.attempt(f'benchmark {name}', _benchmark, title, entry)
        parts += [part] if part else []
  return [tag('h3', 'Benchmarks'), tag('div', *parts, class_='tables')]


def _benchmarks(run: RunFiles) -> dict[str, dict[str, Any]]:
  """Returns the benchmarks of a run; {} in runs of before there were any."""
  return dict(run.summaries.get('eval', {}).get('benchmarks') or {})


def _of_other_judges(run: RunFiles, name: str) -> list[dict[str, Any]]:
  """Returns what other judges said of the stored answers to a benchmark."""
  entries = []
  judge = _benchmarks(run).get(name, {}).get('judge') or {}
  for path in sorted((run.folder / 'eval').glob('summary_*.json')):
    summary = run.read_json(path)
    if isinstance(summary, dict) and name in summary.get('benchmarks', {}):
      entry = _with_scores(summary['benchmarks'][name])
      if not former.is_current(run, name, entry):
        run.say(f'{path}: {name}: of former answers, and left out')
        continue
      other = entry.get('judge') or {}
      if not judge or names.identity_of(other) != names.identity_of(judge):
        entries.append(entry)
  return entries


def _with_scores(entry: Mapping[str, Any]) -> dict[str, Any]:
  """Returns numbers that say which are scores; those of `rejudge` leave it out.

  A mean score of 0.8 of 5 would else be a share of 80 %.
  """
  metrics = (metric for one in entry['models'].values() for metric in one)
  scores = [metric for metric in dict.fromkeys(metrics) if metric not in SHARES]
  return {'scores': scores, **entry}


def _benchmark(title: str, one: Mapping[str, Any]) -> Html:
  """Returns the tables of one benchmark of one run: the headline, and the rest."""
  models = [m for m in (*MODELS, *one['models']) if m in one['models']]
  models = list(dict.fromkeys(models))
  present = list(dict.fromkeys(x for m in models for x in one['models'][m]))
  first = [metric for metric in one.get('headline') or present if metric in present]
  rest = [metric for metric in present if metric not in first]
  folded = None
  if rest:
    word = 'metric' if len(rest) == 1 else 'metrics'
    folded = tag(
      'details',
      tag('summary', f'{len(rest)} other {word}'),
      _metrics_table(f'{title}: other metrics', one, models, rest),
    )
  return tag(
    'div',
    tag('h4', title),
    _metrics_table(title, one, models, first),
    tag('p', _scope(one), class_='small'),
    folded,
  )


def _metrics_table(
  title: str, one: Mapping[str, Any], models: Sequence[str], metrics: Sequence[str]
) -> Html:
  """Returns a table of models by metrics, and of the changes to RLAIF."""
  percent = {
    metric: metric not in one.get('scores', ()) and _is_share(metric, one, models)
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
  return html.table(['Model', *heads], rows, title, class_='compact')


def _is_share(metric: str, one: Mapping[str, Any], models: Sequence[str]) -> bool:
  """Returns whether all values of a metric are shares, and its name is no count.

  A model whose answers have no score at all has no value.
  """
  cells = [one['models'][model].get(metric) for model in models]
  values = [cell['value'] for cell in cells if isinstance(cell, dict)]
  values = [value for value in values if value is not None]
  counts = ('score', 'rank', 'length', 'words', 'tokens', 'reward')
  named_count = any(word in metric for word in counts)
  return not named_count and all(html.is_number(v) and 0 <= v <= 1 for v in values)


def _cell(cell: Any, percent: bool) -> Html | str:
  """Returns the value of a metric with its interval, and what has no score."""
  if not isinstance(cell, dict):
    return ''
  text = html.with_interval(cell.get('value'), cell.get('interval'), percent)
  if html.is_number(cell.get('standard_error')):
    error = f' ± {cell["standard_error"]:.2f} (standard error)'
    text = html.join([text, tag('small', error)])
  if cell.get('unscored'):
    return html.join([text, tag('small', f' {cell["unscored"]} unscored')])
  return text


def _change_cell(cell: Any, percent: bool) -> Html | str:
  """Returns a change with its interval."""
  if not isinstance(cell, dict):
    return ''
  text = html.with_interval(cell.get('change'), cell.get('interval'), percent)
  sign = (
    '+' if text and html.is_number(cell.get('change')) and cell['change'] > 0 else ''
  )
  return html.join([sign, text]) if text else ''


def _scope(one: Mapping[str, Any]) -> str:
  """Returns what was scored of a benchmark, and by which judge."""
  missing = one.get('missing')
  count = len(missing) if isinstance(missing, list) else missing
  text = html.number(one.get('items'))
  if one.get('of'):  # not in what `rejudge` leaves
    text += f' of {html.number(one["of"])}'
  text += ' rows scored'
  if one.get('videos'):
    text += f', {html.number(one["videos"])} videos'
  if count:
    text += f'; {count} videos are missing'
  scorer = one.get('reward_model')
  if isinstance(scorer, dict):
    text += f'; reward model {scorer.get("folder")}, weights {scorer.get("weights")}'
  judge = one.get('judge')
  if isinstance(judge, dict):
    text += '; judge: ' + ', '.join(f'{k} {v}' for k, v in judge.items() if v)
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
    name = run.label if len(runs) > 1 else 'ours'
    label = tag('span', name, class_=f'run c{place}')
    rows += run.attempt(f'its row of {one.title}', _run_rows, one, run, label) or []
  return tag(
    'div',
    tag('h4', one.title),
    html.table(head, rows, one.title, class_='compact paper-table'),
    tag('p', one.note, class_='small'),
  )


def _run_rows(one: PaperTable, run: RunFiles, label: Html) -> list[list[Any]]:
  """Returns the rows of a run: SFT and RLAIF always, the others where they ran."""
  benchmarks = _benchmarks(run)
  rows = []
  for name in MODELS:
    cells = [_paper_cell(benchmarks, column, name) for column in one.columns]
    if name in ('sft', 'rlaif') or any(cells):
      where = tag('small', ' world') if run.is_of_world else None
      title = html.join([label, ' ', NAMES[name], where])
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
