"""Audit rows, the preference pairs that they become, and how good their labels are.

An audit row is two answers to a question with everything about their label: id,
question, answers, narrative, the verdict of the judge (`margin`, or `unjudged`), the
record it came from, and, where a data set has truth, the true quality of both answers.
Of more than two answers to a question, each judged pair is a row.
"""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import examples
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.rows import CONVERSATION
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.settings.label import LabelConfig

Row = dict[str, Any]


def pairs_of(answers: int) -> list[tuple[int, int]]:
  """Returns the pairs of so many answers: 3 -> (0, 1), (0, 2), (1, 2)."""
  return list(itertools.combinations(range(answers), 2))


def rows_per_question(settings: LabelConfig) -> int:
  """Returns how many audit rows a question has."""
  return len(pairs_of(settings.answers)) if settings.pairs == 'all' else 1


def chosen_rows(rows: Sequence[Row], settings: LabelConfig) -> list[Row]:
  """Returns the rows of a question that are kept, `rows_per_question` of them.

  Of `pairs=all` all; a row that repeats the answers of an earlier one is marked as
  `repeated`. Of `extremes` the best with the worst answer, by the sum of the margins of
  an answer over the others.

  Args:
    rows: of all pairs of the answers to one question, in the order of `pairs_of`.
  """
  if settings.pairs == 'all':
    earlier: set[frozenset[str]] = set()
    chosen = []
    for row in rows:
      texts = frozenset(row['answers'])
      chosen.append({**row, 'repeated': True} if texts in earlier else row)
      earlier.add(texts)
    return chosen
  totals = np.zeros(settings.answers)
  for (first, second), row in zip(pairs_of(settings.answers), rows, strict=True):
    margin = row.get('margin', 0.0)
    totals[first] += margin
    totals[second] -= margin
  ends = sorted((int(np.argmax(totals)), int(np.argmin(totals))))
  if ends[0] == ends[1]:  # all totals are equal
    ends = [0, 1]
  return [rows[pairs_of(settings.answers).index((ends[0], ends[1]))]]


def audit_row(
  item: Example,
  answers: Sequence[Answer],
  narrative: str,
  verdict: dict[str, Any],
) -> Row:
  """Returns the audit row of a question."""
  return {
    'id': item.key,
    'question': item.question,
    'answers': [answer.text for answer in answers],
    'stopped': [answer.stopped for answer in answers],
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


def deciding_margin(
  row: Row, min_margin: float, ties: str, inconsistent: str
) -> float | None:
  """Returns the margin whose sign is the label of a row; None if it has no label.

  Args:
    min_margin, ties, inconsistent: the settings of these names, which drop some.
  """
  first, second = row['answers']
  if first == second or 'margin' not in row or row.get('repeated'):
    return None
  margin = row['margin']
  if not math.isfinite(margin):
    return None
  if abs(margin) <= min_margin and ties == 'drop':
    return None
  if not row.get('orders_agree', True):
    if inconsistent == 'drop':
      return None
    if inconsistent == 'keep':  # the order as sampled decides
      return row['forward']
  return margin


def as_pair(row: Row, settings: LabelConfig) -> dict[str, Any] | None:
  """Returns a preference record in the released format; None if a policy drops it."""
  policies = settings.min_margin, settings.ties, settings.inconsistent
  margin = deciding_margin(row, *policies)
  if margin is None:
    return None
  first, second = row['answers']
  record = dict(row['record'])
  question = examples.messages_of(record, f'record {row["id"]}')[0]
  # Audits of 0.1.0 do not say which answers were cut.
  stopped = [{'stopped': end} for end in row.get('stopped', ())] or [{}, {}]
  return {
    **{name: value for name, value in record.items() if name not in CONVERSATION},
    'conversations': [question, {'from': 'gpt', 'value': ''}],
    'output_1': {'value': first, **stopped[0]},
    'output_2': {'value': second, **stopped[1]},
    'preference': 1 if margin > 0 else 2,
    'margin': margin,
    'narrative': row['narrative'],
  }


def cut_answers(rows: Sequence[Row], settings: LabelConfig) -> dict[str, Any]:
  """Returns which questions have an answer that was cut at the longest length.

  Returns:
    questions: how many; pairs: how many of theirs became pairs; ids: which, where
      questions that share an id have it once.
  """
  each = rows_per_question(settings)
  cut = {i: row for i, row in enumerate(rows) if not all(row.get('stopped', ()))}
  return {
    'questions': len({number // each for number in cut}),
    'pairs': sum(as_pair(row, settings) is not None for row in cut.values()),
    'ids': list(dict.fromkeys(row['id'] for row in cut.values())),
  }


def no_pairs_message(
  rows: Sequence[Row], settings: LabelConfig, folder: pathlib.Path
) -> str:
  """Returns the error of a run in which no question gave a pair."""
  judged = [row for row in rows if 'margin' in row]
  alike = sum(row['answers'][0] == row['answers'][1] for row in judged)
  return (
    f'{folder / "audit.jsonl"}: 0 pairs of {len(rows) // rows_per_question(settings)} '
    'questions: '
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
    agreement: share of those on which the sign of the margin is right; a margin of 0
      is half right.
    compared: the same for questions that were judged in both contexts.
    agreement_kept: the same for those that became pairs; pairs whose answers are
      equally true are left out.
    truth_ties: how many those are.
  """
  rows = [row for row in rows if 'margin' in row and not row.get('repeated')]
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
  labels = [
    {**row, 'label': (3 - 2 * pair['preference']) if pair['margin'] else 0}
    for row in different
    if 'truth' in row and (pair := as_pair(row, settings)) is not None
  ]
  decided = [row for row in labels if row['truth'][0] != row['truth'][1]]
  if decided:
    result['agreement_kept'] = _sign_accuracy(decided, 'label')
    result['truth_ties'] = len(labels) - len(decided)
  return result


def _sign_accuracy(rows: Sequence[Row], name: str) -> float | None:
  """Returns the share of rows in which the sign of a margin agrees with the truth.

  A margin of 0 is half right. The truth of no row is a tie.
  """
  signs = [row[name] * (row['truth'][0] - row['truth'][1]) for row in rows]
  hits = [(sign > 0) + 0.5 * (sign == 0) for sign in signs]
  return float(np.mean(hits)) if hits else None
