"""The numbers of a run: its own questions, benchmarks, and the paper's tables."""

from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.reports.page import axes, benchmarks, html, paper, plots
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles
from vlm_rlaif_jax.settings.checks import bracket
from vlm_rlaif_jax.settings.eval import MODELS

LONGEST_PLOT = 9  # rows of a plot of kinds; more of them are two plots


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
  interval = summary['qa_change_interval']
  low, high = interval or (0.0, 0.0)  # None: not known, as of one video
  sure = 'better' if low > 0 else 'worse' if high < 0 else 'not decided'
  ends = bracket(interval and [100 * low, 100 * high], '{:+.1f}'.format)
  return tag(
    'div',
    tag('span', f'{run.label}, seed {run.seed}', class_=f'run c{place}'),
    tag('p', tag('b', f'{100 * (after - before):+.1f}'), ' points', class_='figure'),
    tag(
      'p',
      f'questions answered right: SFT {html.share(before)}\u00a0%, RLAIF '
      f'{html.share(after)}\u00a0%',
    ),
    tag(
      'p',
      f'95 % interval of the change {ends}: {sure}',
      class_=f'small {sure.replace(" ", "-")}',
    ),
    *_details(run),
    class_='tile',
  )


def _details(run: RunFiles) -> list[Html]:
  """Returns lines of a tile: what else moved, and what the reward model knows."""
  before, after = (run.summaries['eval'][name] for name in ('sft', 'rlaif'))
  lines = []
  for title, name, part in (
    ('long answers right', 'accuracy', 'long'),
    ('short answers right', 'accuracy', 'short'),
    ('claims invented', 'hallucination_rate', None),
    ('facts recalled', 'fact_recall', None),
  ):
    values = [(one.get(part, {}) if part else one).get(name) for one in (before, after)]
    if all(map(html.is_number, values)):
      lines.append((title, f'{html.share(values[0])} → {html.share(values[1])}\u00a0%'))
  reward = run.summaries.get('reward', {})
  if html.is_number(reward.get('accuracy')):
    text = f'{html.share(reward["accuracy"])}\u00a0%'
    if html.is_number(reward.get('accuracy_without_video')):
      text += f', without video {html.share(reward["accuracy_without_video"])}\u00a0%'
    lines.append(('reward model right', text))
  items = [html.join([tag('dt', title), tag('dd', text)]) for title, text in lines]
  return [tag('dl', *items)] if items else []


def build(runs: Sequence[RunFiles]) -> Html:
  """Returns the tables and plots of evaluations."""
  own = own_questions(runs)
  parts = [own, *benchmarks.tables(runs), tag('h3', "The paper's tables")]
  parts.append(
    tag(
      'p',
      'Rows of this page carry run and model, the 95 % interval over videos and the '
      'number of items; blank: not run. Numbers with ~ were read off a chart. A judge '
      'is part of a number: compare rows of one judge only. Rows of the built-in world '
      'have its counterpart of a benchmark, in the same files, not the videos of the '
      'benchmark: they are marked "world" and say nothing of the rows above.',
      class_='lead',
    )
  )
  tables = [benchmarks.paper_table(one, runs) for one in paper.TABLES]
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
        benchmarks.NAMES[name],
        html.with_interval(result.get('qa_accuracy'), result.get('qa_interval')),
        html.share(result.get('long', {}).get('accuracy')),
        html.share(result.get('short', {}).get('accuracy')),
        html.share(result.get('hallucination_rate')),
        html.share(result.get('fact_recall')),
        html.number(result.get('n')),
      ]
    )
  return rows


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
      rows.append((benchmarks.NAMES[name], group))
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
          f'Change from {benchmarks.NAMES[before]} to RLAIF, by kind of question',
          rows[first : first + size],
          x_title='points',
          zero=True,
          span=ends,
          legend=run_legend(runs),
          note='right of 0: RLAIF answers more of them right',
        )
      )
  return drawings
