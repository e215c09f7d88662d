"""The page of the study: what each cell changes, and what more of something brings."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports import study_kinds, study_table
from vlm_rlaif_jax.reports.page import document, html, plots
from vlm_rlaif_jax.reports.page.axes import Series
from vlm_rlaif_jax.reports.page.html import Html, tag

NAMES = {'long': 'Long answers', 'short': 'Short answers', 'all': 'All questions'}
HELD_OUT = {
  'held_out/reward': 'reward model',
  'held_out/judge': 'judge',
  'held_out/true_quality': 'truth',
}


def page(results: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the page of the study.

  Args:
    results: of `study_table.read`.
    kinds: of `study_kinds.by_kind`, of the default cell.
  """
  sections = [
    ('cells', 'What each cell changes', _changes(results)),
    ('pairs', 'More pairs', _pairs(results)),
    ('kl', 'More training', _training(results.get('default', {}).get('seeds', []))),
    ('kinds', 'Kinds of questions', _kinds(kinds)),
    ('table', 'Claims', _table(results)),
  ]
  return document.compose('VLM-RLAIF: the study', 'What the study shows', sections)


def _changes(results: Mapping[str, Any]) -> Html:
  """Returns the change from SFT to RLAIF in every cell that has run."""
  figures = []
  for part, name in NAMES.items():
    rows = [
      (cell, [_interval(cell, change)])
      for cell, result in results.items()
      if (change := result.get(part))
    ]
    note = 'right after RLAIF less right after SFT, mean of the seeds'
    figures.append(plots.intervals(name, rows, note=note, x_title='points', zero=True))
  return _figures(figures)


def _interval(name: str, change: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a change in points, as a plot of intervals takes it."""
  low, high = change['interval']
  return {
    'name': name,
    'color': 0 if name == 'default' else 1,
    'value': 100 * change['change'],
    'interval': (100 * low, 100 * high),
  }


def _pairs(results: Mapping[str, Any]) -> Html:
  """Returns reward model and policy against the number of pairs, a color a seed."""
  cells = [
    result
    for name, result in results.items()
    if name == 'default' or name.startswith('pairs_')
  ]
  rows = sorted(
    (row for result in cells for row in result['seeds']),
    key=lambda row: (row['seed'], row['pairs']),
  )
  accuracy, gain = [], []
  for color, seed in enumerate(sorted({row['seed'] for row in rows})):
    own = [(float(row['pairs']), row) for row in rows if row['seed'] == seed]
    for field, dash, name in (
      ('reward_accuracy', 0, 'with the video'),
      ('reward_accuracy_blind', 1, 'without'),
    ):
      points = [(count, row[field]) for count, row in own]
      accuracy.append(Series(f'seed {seed}, {name}', points, color, dash))
    points = [(n, 100 * row['long']['change']) for n, row in own if row['long']]
    gain.append(Series(f'seed {seed}', points, color))
  return _figures(
    [
      plots.lines(
        'Reward model on held-out pairs', accuracy, 'pairs', y_text=html.share_text
      ),
      plots.lines('Gain of long answers, points', gain, 'pairs', y_range=(0.0, 0.0)),
    ]
  )


def _training(rows: Sequence[Mapping[str, Any]]) -> Html:
  """Returns reward, judge and truth of held-out answers against the policy's KL."""
  figures = []
  for row in rows:
    points = row['held_out']
    series = [
      Series(name, [(one['kl'], one[field]) for one in points if field in one], color)
      for color, (field, name) in enumerate(HELD_OUT.items())
    ]
    title = f'Held-out answers, seed {row["seed"]}'
    figures.append(plots.lines(title, series, 'KL of an answer to the initial policy'))
  return _figures(figures)


def _kinds(kinds: Mapping[str, Mapping[str, Any]]) -> Html:
  """Returns what the default run does to each kind of question."""
  if not kinds:
    return tag('p', 'Not run.')
  rows = [study_kinds.columns(kind, row) for kind, row in kinds.items()]
  return html.table(study_kinds.HEAD, rows, 'kinds of questions, all seeds')


def _table(results: Mapping[str, Any]) -> Html:
  """Returns each cell's claim with its verdict."""
  rows = []
  for name, result in results.items():
    changes = [study_table.change_text(result.get(part)) for part in NAMES]
    seeds = study_table.seeds_text(result)
    rows.append((name, result['claim'], result['verdict'], seeds, *changes))
  head = ('cell', 'claim', 'verdict', 'seeds', *NAMES.values())
  return html.table(head, rows, 'claims and verdicts')


def _figures(figures: Sequence[Html | None]) -> Html:
  """Returns plots beside one another; a sentence where there is none."""
  there = [one for one in figures if one is not None]
  if not there:
    return tag('p', 'Not run.')
  return tag('div', *there, class_='plots')
