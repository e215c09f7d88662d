"""How far labels and reward model can be trusted: agreement, order, margins,
calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.reports.page import html, judges, plots
from vlm_rlaif_jax.reports.page.axes import Series
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles
from vlm_rlaif_jax.train import pair_controls

Row = dict[str, Any]


def build(runs: Sequence[RunFiles], audits: Sequence[Sequence[Row]]) -> Html:
  """Returns the tables and plots of labels and rewards.

  Args:
    audits: of each run the rows of `label/audit.jsonl` that were judged.
  """
  tables = [_label_table(runs, audits), *judges.build(runs)]
  drawings: list[Html | None] = []
  for place, (run, rows) in enumerate(zip(runs, audits, strict=True)):
    drawings += run.attempt('the margins of its judge', _margin_plots, run, rows) or []
    part = run.attempt('the margins of its reward model', _reward_margins, run)
    drawings.append(part)
    del place
  drawings.append(_calibration(runs, audits))
  drawings = [one for one in drawings if one]
  if not drawings and not any(tables):
    return tag('p', 'Neither labels nor a reward model are there.')
  return html.join([*filter(None, tables), tag('div', *drawings, class_='plots')])


def judged(run: RunFiles) -> list[Row]:
  """Returns the rows of the audit that have a finite margin and two answers.

  Those that repeat two answers to a question are left out, as in the summary.
  """
  path = run.folder / 'label' / 'audit.jsonl'
  if not path.exists():
    if 'label' in run.summaries:
      run.say(f'{path}: no such file, so no margins of the judge')
    return []
  return [
    row
    for row in run.read_rows(path)
    if html.is_number(row.get('margin'))
    and _two_texts(row.get('answers'))
    and not row.get('repeated')
  ]


def _two_texts(value: Any) -> bool:
  """Returns whether a value is a list of two texts."""
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(text, str) for text in value)
  )


def _label_table(
  runs: Sequence[RunFiles], audits: Sequence[Sequence[Row]]
) -> Html | None:
  """Returns what the judge agrees with: the truth, itself, and the other context."""
  columns = [
    run.attempt('the agreement of its judge', _agreement, run, rows) or {}
    for run, rows in zip(runs, audits, strict=True)
  ]
  names = list(dict.fromkeys(name for one in columns for name in one))
  if not names:
    return None
  rows = [(name, *(one.get(name, '') for one in columns)) for name in names]
  head = ['', *(run.label for run in runs)]
  return html.join(
    [tag('h3', 'The judge'), html.table(head, rows, 'The judge', class_='facts')]
  )


def _agreement(run: RunFiles, rows: Sequence[Row]) -> dict[str, str]:
  """Returns the lines of the table for one run, by title."""
  summary = run.summaries.get('label', {})
  if not summary:
    return {}
  lines = {
    'Questions': html.number(summary.get('questions')),
    'Pairs': html.number(summary.get('pairs')),
    'Identical answers': html.number(summary.get('identical')),
    'Judge': str(
      summary.get('judge') or run.settings.get('label', {}).get('label.judge', '')
    ),
    'Right where answers differ in truth, %': html.share(summary.get('agreement')),
    'Right among pairs, %': html.share(summary.get('agreement_kept')),
  }
  compared = summary.get('compared')
  if isinstance(compared, dict):
    for name, title in (('narrative', 'with'), ('none', 'without')):
      lines[f'Right {title} the narrative, %'] = (
        f'{html.share(compared.get(name))} (n {compared.get("n")})'
      )
  lines['Both orders agree, %'] = (
    html.share(summary.get('order_agreement')) or 'not asked in two orders'
  )
  orders = order_bias(rows)
  if orders:
    lines['First answer chosen, %'] = html.share(orders['first'])
    lines['Log-odds that the first place is worth'] = html.number(orders['bias'])
  else:
    first = [row['margin'] > 0 for row in rows if row['margin']]
    if first:
      lines['First answer chosen, %'] = html.share(float(np.mean(first)))
  return {name: value for name, value in lines.items() if value}


def order_bias(rows: Sequence[Row]) -> dict[str, float]:
  """Returns how a judge of two options prefers the first place; {} without orders.

  Returns:
    first: share of all judgments, in both orders, that chose the first answer.
    bias: mean log-odds of A against B over both orders, where the answers cancel.
  """
  both = np.asarray(
    [
      (row['forward'], row['swapped'])
      for row in rows
      if html.is_number(row.get('forward')) and html.is_number(row.get('swapped'))
    ]
  )
  if not len(both):
    return {}
  first = np.where(both == 0, 0.5, both > 0)
  return {'first': float(first.mean()), 'bias': float(both.mean())}


def _margin_plots(run: RunFiles, rows: Sequence[Row]) -> list[Html | None]:
  """Returns the histogram of the judge's margins, by whether they are right."""
  different = [row for row in rows if row['answers'][0] != row['answers'][1]]
  if not different:
    return []
  settings = run.settings.get('label', {})
  threshold = settings.get('label.min_margin')
  if settings.get('label.ties') == 'keep':
    threshold = None
  marks = [-threshold, threshold] if html.is_number(threshold) and threshold else []
  signs = [(row['margin'], _true_sign(row)) for row in different]
  groups = [
    ('right', [m for m, sign in signs if sign and m * sign > 0], 'good'),
    ('wrong', [m for m, sign in signs if sign and m * sign < 0], 'bad'),
    ('undecided', [m for m, sign in signs if sign and m == 0], 'neutral'),
    ('equally true', [m for m, sign in signs if sign == 0], 'neutral'),
    ('truth not known', [m for m, sign in signs if sign is None], 'neutral'),
  ]
  note = 'first answer preferred: right of 0'
  if marks:
    note += f'; between the lines ({html.number(threshold)}) a pair is a tie'
  title = f'Margins of the judge, {run.label}'
  return [plots.histogram(title, groups, 'margin, log-odds', note=note, marks=marks)]


def _true_sign(row: Row) -> int | None:
  """Returns 1 if the first answer is truer, -1 if the second, 0 if neither."""
  truth = row.get('truth')
  if not isinstance(truth, list) or not all(map(html.is_number, truth)):
    return None
  return int(np.sign(truth[0] - truth[1]))


def _reward_margins(run: RunFiles) -> Html | None:
  """Returns the histogram of the reward model's margins on held-out pairs."""
  path = run.folder / 'reward' / 'margins.json'
  if not path.exists():
    return None
  margins = run.read_json(path)
  if margins is None:
    return None
  own = np.asarray(margins['own'], float)
  second = np.asarray(margins['second_preferred'], bool)
  oriented = np.where(second, own, -own)
  blank = np.asarray(margins['blank'], float)
  shift = np.where(second, blank, -blank)
  groups = [
    ('as labeled', oriented[oriented > 0].tolist(), 'good'),
    ('against the label', oriented[oriented < 0].tolist(), 'bad'),
    ('both alike', oriented[oriented == 0].tolist(), 'neutral'),
  ]
  note = (
    f'preferred answer scores higher: right of 0; without the video {_share(shift)} %'
  )
  title = f'Margins of the reward model, {run.label}'
  return plots.histogram(title, groups, 'margin of the scores', note=note)


def _share(margins: np.ndarray) -> str:
  """Returns the share of margins over 0; one of 0 is half a hit, as in the stage."""
  return html.share(float(np.mean(np.where(margins == 0, 0.5, margins > 0))))


def _calibration(
  runs: Sequence[RunFiles], audits: Sequence[Sequence[Row]]
) -> Html | None:
  """Returns the reliability of judge (against truth) and reward model (labels)."""
  drawing = []
  for place, (run, rows) in enumerate(zip(runs, audits, strict=True)):
    name = '' if len(runs) == 1 else f'{run.label} '
    curves = (
      ('reward model', run.attempt('the calibration of its reward model', _curve, run)),
      ('judge', run.attempt('the calibration of its judge', judge_curve, rows)),
    )
    for dash, (title, curve) in enumerate(curves):
      if curve:
        ece, bins = curve
        label = f'{name}{title}, error {100 * ece:.1f} %'
        points = [(mean, right) for mean, right, _ in bins]
        drawing.append(
          (Series(label, points, place, dash), [size for *_, size in bins])
        )
  note = (
    'share right by stated confidence σ(|margin|); of the reward model against labels, '
    'of the judge against truth; on the line: calibrated'
  )
  return plots.reliability('Calibration', drawing, note=note)


Curve = tuple[float, list[tuple[float, float, int]]]


def _curve(run: RunFiles) -> Curve | None:
  """Returns the reliability curve of the reward model."""
  calibration = run.summaries.get('reward', {}).get('calibration')
  if not calibration:
    return None
  bins = [(mean, right, size) for mean, right, size in calibration['curve']]
  return calibration['ece'], bins


def judge_curve(rows: Sequence[Row]) -> Curve | None:
  """Returns the reliability curve of the judge, where truth decides a pair."""
  decided = [(row['margin'], sign) for row in rows if (sign := _true_sign(row))]
  if not decided:
    return None
  margins = np.asarray([margin for margin, _ in decided], float)
  first = np.asarray([sign > 0 for _, sign in decided])
  result = pair_controls.calibration(margins, first)
  return result['ece'], result['curve']
