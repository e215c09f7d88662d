"""Audit rows as preference pairs, and what is known about their labels."""

import pathlib

import numpy as np

from vlm_rlaif_jax.data import examples
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.label import LabelConfig


def as_pair(row: dict, settings: LabelConfig) -> dict | None:
  """An audit row as a preference record, or None where a policy drops it."""
  first, second = row['answers']
  if first == second or 'margin' not in row:
    return None
  margin = row['margin']
  if abs(margin) <= settings.min_margin and settings.ties == 'drop':
    return None
  if not row.get('orders_agree', True):
    if settings.inconsistent == 'drop':
      return None
    if settings.inconsistent == 'keep':  # the first asking decides
      margin = row['forward']
  record = dict(row['record'])
  asked = examples.messages_of(record, f'record {row["id"]}')[0]
  return {
    **{k: v for k, v in record.items() if k != 'conversations'},
    'conversations': [asked, {'from': 'gpt', 'value': ''}],
    'output_1': {'value': first},
    'output_2': {'value': second},
    'preference': 1 if margin > 0 else 2,
    'margin': margin,
    'narrative': row['narrative'],
  }


def none_left(rows: list[dict], settings: LabelConfig, folder: pathlib.Path) -> str:
  """Why no pair came of any question."""
  judged = [row for row in rows if 'margin' in row]
  alike = sum(row['answers'][0] == row['answers'][1] for row in judged)
  return (
    f'{folder / "audit.jsonl"}: 0 pairs of {len(rows)} questions: '
    f'{len(rows) - len(judged)} not judged, {alike} with two identical answers, '
    f'{len(judged) - alike} dropped by config.label.ties={settings.ties}, '
    f'min_margin={settings.min_margin} or inconsistent={settings.inconsistent}'
  )


def with_truth(row: dict, truth: Truth) -> dict:
  """Adds the true quality of both answers."""
  if row['id'] not in truth:
    return row
  return {
    **row,
    'truth': [truth.score(row['id'], answer).quality for answer in row['answers']],
  }


def agreement(rows: list[dict], settings: LabelConfig) -> dict:
  """How the labels agree with the truth and the judge with itself."""
  rows = [row for row in rows if 'margin' in row]
  asked = [row for row in rows if row['answers'][0] != row['answers'][1]]
  result: dict = {'identical': len(rows) - len(asked)}
  orders = [row['orders_agree'] for row in asked if 'orders_agree' in row]
  result['order_agreement'] = float(np.mean(orders)) if orders else None
  known = [
    row for row in asked if 'truth' in row and row['truth'][0] != row['truth'][1]
  ]

  def right(name: str, judged: list[dict]) -> float | None:
    hits = [(row[name] > 0) == (row['truth'][0] > row['truth'][1]) for row in judged]
    return float(np.mean(hits)) if hits else None

  result['informative'] = len(known)
  result['agreement'] = right('margin', known)
  compared = [row for row in known if 'margin_other_context' in row]
  if compared:
    contexts = ('narrative', 'none')
    here = contexts.index(settings.context)
    result['compared'] = {
      'n': len(compared),
      contexts[here]: right('margin', compared),
      contexts[1 - here]: right('margin_other_context', compared),
    }
  hits = [
    (pair['preference'] == 1) == (row['truth'][0] > row['truth'][1])
    for row in known
    if (pair := as_pair(row, settings)) is not None
  ]
  if hits:
    result['agreement_kept'] = float(np.mean(hits))
  return result
