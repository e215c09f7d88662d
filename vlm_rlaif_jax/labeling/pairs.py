"""Audit rows, the preference pairs that they become, and how good their labels are.

An audit row is one question with everything about its label: id, question, answers,
narrative, the verdict of the judge (`margin`, or `unjudged`), the record it came from,
and, where a data set has truth, the true quality of both answers.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import examples
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.label import LabelConfig

Row = dict[str, Any]


def audit_row(
  item: Example, answers: Sequence[str], narrative: str, verdict: dict[str, Any]
) -> Row:
  """Returns the audit row of a question."""
  return {
    'id': item.key,
    'question': item.question,
    'answers': answers,
    'narrative': narrative,
    **verdict,
    'record': item.record,
  }


def with_truth(row: Row, truth: Truth) -> Row:
  """Returns the row with the true quality of both answers."""
  if row['id'] not in truth:
    return row
  return {
    **row,
    'truth': [truth.score(row['id'], answer).quality for answer in row['answers']],
  }


def as_pair(row: Row, settings: LabelConfig) -> dict[str, Any] | None:
  """Returns a preference record in the released format; None if a policy drops it."""
  first, second = row['answers']
  if first == second or 'margin' not in row:
    return None
  margin = row['margin']
  if abs(margin) <= settings.min_margin and settings.ties == 'drop':
    return None
  if not row.get('orders_agree', True):
    if settings.inconsistent == 'drop':
      return None
    if settings.inconsistent == 'keep':  # the order as sampled decides
      margin = row['forward']
  record = dict(row['record'])
  question = examples.messages_of(record, f'record {row["id"]}')[0]
  return {
    **{k: v for k, v in record.items() if k != 'conversations'},
    'conversations': [question, {'from': 'gpt', 'value': ''}],
    'output_1': {'value': first},
    'output_2': {'value': second},
    'preference': 1 if margin > 0 else 2,
    'margin': margin,
    'narrative': row['narrative'],
  }


def no_pairs_message(
  rows: Sequence[Row], settings: LabelConfig, folder: pathlib.Path
) -> str:
  """Returns the error of a run in which no question gave a pair."""
  judged = [row for row in rows if 'margin' in row]
  alike = sum(row['answers'][0] == row['answers'][1] for row in judged)
  return (
    f'{folder / "audit.jsonl"}: 0 pairs of {len(rows)} questions: '
    f'{len(rows) - len(judged)} not judged, {alike} with two identical answers, '
    f'{len(judged) - alike} dropped by config.label.ties={settings.ties}, '
    f'min_margin={settings.min_margin} or inconsistent={settings.inconsistent}'
  )


def agreement(rows: Sequence[Row], settings: LabelConfig) -> dict[str, Any]:
  """Returns how the labels agree with the truth, and the judge with itself.

  Returns:
    identical: pairs of equal answers.
    order_agreement: share of questions on which both orders agree; None if one order.
    informative: questions whose answers differ in true quality.
    agreement: share of those on which the sign of the margin is right.
    compared: the same for questions that were judged in both contexts.
    agreement_kept: the same for those that became pairs.
  """
  rows = [row for row in rows if 'margin' in row]
  different = [row for row in rows if row['answers'][0] != row['answers'][1]]
  result: dict[str, Any] = {'identical': len(rows) - len(different)}

  # The judge with itself.
  orders = [row['orders_agree'] for row in different if 'orders_agree' in row]
  result['order_agreement'] = float(np.mean(orders)) if orders else None

  # The margin with the truth.
  informative = [
    row for row in different if 'truth' in row and row['truth'][0] != row['truth'][1]
  ]
  result['informative'] = len(informative)
  result['agreement'] = _sign_accuracy(informative, 'margin')
  compared = [row for row in informative if 'margin_other_context' in row]
  if compared:
    contexts = ('narrative', 'none')
    index = contexts.index(settings.context)
    result['compared'] = {
      'n': len(compared),
      contexts[index]: _sign_accuracy(compared, 'margin'),
      contexts[1 - index]: _sign_accuracy(compared, 'margin_other_context'),
    }

  # The pairs with the truth.
  hits = [
    (pair['preference'] == 1) == (row['truth'][0] > row['truth'][1])
    for row in informative
    if (pair := as_pair(row, settings)) is not None
  ]
  if hits:
    result['agreement_kept'] = float(np.mean(hits))
  return result


def _sign_accuracy(rows: Sequence[Row], name: str) -> float | None:
  """Returns the share of rows in which the sign of a margin agrees with the truth."""
  hits = [(row[name] > 0) == (row['truth'][0] > row['truth'][1]) for row in rows]
  return float(np.mean(hits)) if hits else None
