"""What each stage does to each kind of question, over the seeds of a cell.

Seeds share their clips, and what the base answers; so all answers about a clip are one
cluster, whichever seed gave them.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.reports.study_pairs import NORMAL, Answer, answers
from vlm_rlaif_jax.reports.study_table import change_text
from vlm_rlaif_jax.settings.sections import LONG_KINDS

MODELS = ('base', 'sft', 'rlaif')  # each compared with the one before it
ALLOWED = 0.02  # what a kind may lose in a stage
HEAD = [
  *('kind', 'questions', 'base', 'SFT', 'RLAIF', 'SFT less base', 'RLAIF less SFT'),
  'loses over 2 points in',
]


def by_kind(
  root: pathlib.Path, cell: str, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
  """Returns the accuracy and the changes of each kind of question, short kinds first.

  Args:
    seeds: that have run; those without answers of all models are left out.

  Returns:
    by kind: `long`, `questions` of all seeds, the `accuracy` of each model, and the
    `changes` of the last two, each with its interval.
  """
  runs = [
    [answers(root / f'{cell}-{seed}', model) for model in MODELS] for seed in seeds
  ]
  compared: dict[str, list[tuple[Answer, ...]]] = {}
  for run in runs:
    for key in sorted(set.intersection(*(set(one) for one in run))):
      row = tuple(one[key] for one in run)
      compared.setdefault(row[0].kind, []).append(row)
  kinds = sorted(compared, key=lambda kind: (kind in LONG_KINDS, kind))
  return {kind: _numbers(kind, compared[kind]) for kind in kinds}


def _numbers(kind: str, rows: Sequence[tuple[Answer, ...]]) -> dict[str, Any]:
  """Returns what `by_kind` has of a kind.

  Args:
    rows: the answers of all models to a question.
  """
  right = np.asarray([[one.right for one in row] for row in rows])
  videos = [row[0].video for row in rows]
  changes = {}
  for number, model in enumerate(MODELS[1:], 1):
    difference = right[:, number] - right[:, number - 1]
    change = float(difference.mean())
    error = statistics.standard_error(difference, videos)
    half = 1.0 if error is None else NORMAL * error  # of one clip, nothing is known
    changes[model] = {'change': change, 'interval': (change - half, change + half)}
  return {
    'long': kind in LONG_KINDS,
    'questions': len(rows),
    'accuracy': dict(zip(MODELS, map(float, right.mean(axis=0)), strict=True)),
    'changes': changes,
  }


def table(kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns the kinds as a table in Markdown."""
  lines = [HEAD, ['---'] * len(HEAD), *(columns(kind, kinds[kind]) for kind in kinds)]
  return [f'| {" | ".join(line)} |' for line in lines]


def columns(kind: str, row: Mapping[str, Any]) -> list[str]:
  """Returns what a table has of a kind, below `HEAD`."""
  losses = (loss(row, model) for model in MODELS[1:])
  return [
    kind + (' (long)' if row['long'] else ''),
    str(row['questions']),
    *(f'{row["accuracy"][model]:.1%}' for model in MODELS),
    *(change_text(row['changes'][model]) for model in MODELS[1:]),
    '; '.join(filter(None, losses)),
  ]


def loss(row: Mapping[str, Any], model: str) -> str:
  """Returns what is said of a kind that loses more than `ALLOWED` in a stage."""
  change, (_, high) = row['changes'][model]['change'], row['changes'][model]['interval']
  if change >= -ALLOWED:
    return ''
  return model.upper() if high < 0 else f'{model.upper()}, within chance'
