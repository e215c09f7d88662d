"""What each stage does to each kind of question, over the seeds of a cell."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.reports.study_pairs import (
  Answer,
  Difference,
  answers,
  is_unfinished,
  over_seeds,
)
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
    seeds: that have run; those without answers of all models are left out, and those
      of which a stage is still to run.

  Returns:
    by kind: `long`, `questions` of all seeds, the `accuracy` of each model, and the
    `changes` of the last two, each with its interval.
  """
  # By kind: rows of a seed, each with the answers of all models to a question
  compared: dict[str, dict[int, list[tuple[Answer, ...]]]] = {}
  for seed in seeds:
    if is_unfinished(root / f'{cell}-{seed}'):
      continue
    run = [answers(root / f'{cell}-{seed}', model) for model in MODELS]
    for key in sorted(set.intersection(*(set(one) for one in run))):
      row = tuple(one[key] for one in run)
      compared.setdefault(row[0].kind, {}).setdefault(seed, []).append(row)
  kinds = sorted(compared, key=lambda kind: (kind in LONG_KINDS, kind))
  return {kind: _numbers(kind, list(compared[kind].values())) for kind in kinds}


def _numbers(
  kind: str, by_seed: Sequence[Sequence[tuple[Answer, ...]]]
) -> dict[str, Any]:
  """Returns what `by_kind` has of a kind.

  Args:
    by_seed: of each seed, the answers of all models to each question.
  """
  right = np.asarray([[one.right for one in row] for rows in by_seed for row in rows])

  def change(number: int) -> dict[str, Any] | None:
    """Returns what a model changes against the one before it."""
    return over_seeds(
      [
        [
          Difference(row[0].video, row[number].right - row[number - 1].right)
          for row in rows
        ]
        for rows in by_seed
      ]
    )

  return {
    'long': kind in LONG_KINDS,
    'questions': len(right),
    'accuracy': dict(zip(MODELS, map(float, right.mean(axis=0)), strict=True)),
    'changes': {model: change(n) for n, model in enumerate(MODELS) if n},
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
