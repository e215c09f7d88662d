"""How far a cell of the study is ahead of another one, question by question.

Both answered the same questions about the same clips, mostly after the same SFT, so
their difference is known better than either of them.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import qa, statistics
from vlm_rlaif_jax.settings.sections import LONG_KINDS

NORMAL = 1.96  # half of the width of a 95 % interval, in standard errors

Gains = dict[str, tuple[str, float]]  # by question: its video, and what was gained


class Answer(NamedTuple):
  """An answer to a question of one kind about a video; right is 1.0 or 0.0."""

  video: str
  kind: str
  right: float


def lead(
  root: pathlib.Path, ahead: str, behind: str, seeds: Sequence[int], by: str
) -> dict[str, Any] | None:
  """Returns by how much one cell gains more than another, over the seeds of both.

  Seeds are taken as independent: the mean of n leads with standard errors s, robust to
  questions that share a video, has sqrt(sum s^2) / n.

  Args:
    seeds: that both have run.
    by: 'long': what long answers gain from SFT to RLAIF; 'final': all questions, RLAIF
      alone.

  Returns:
    change, error and interval; None without seeds or without answers.
  """
  means, errors = [], []
  for seed in seeds:
    first, second = (gains(root / f'{name}-{seed}', by) for name in (ahead, behind))
    keys = sorted(first.keys() & second.keys())
    if not keys:
      return None
    difference = np.asarray([first[key][1] - second[key][1] for key in keys])
    error = statistics.standard_error(difference, [first[key][0] for key in keys])
    means.append(float(difference.mean()))
    errors.append(error or 0.0)
  return over_seeds(means, errors) if means else None


def over_seeds(means: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
  """Returns the mean over independent seeds, its standard error and 95 % interval."""
  change = sum(means) / len(means)
  error = math.sqrt(sum(e * e for e in errors)) / len(errors)
  interval = (change - NORMAL * error, change + NORMAL * error)
  return {'change': change, 'error': error, 'interval': interval}


def gains(workdir: pathlib.Path, by: str) -> Gains:
  """Returns what RLAIF gained at each question of a run; {} where there are no answers.

  Args:
    by: as of `lead`.
  """
  after = answers(workdir, 'rlaif')
  if by == 'final':
    return {key: (one.video, one.right) for key, one in after.items()}
  before = answers(workdir, 'sft')
  return {
    key: (one.video, one.right - before[key].right)
    for key, one in after.items()
    if key in before and one.kind in LONG_KINDS
  }


def answers(workdir: pathlib.Path, model: str) -> dict[str, Answer]:
  """Returns a model's answer to each question of a run, by the question's id.

  There are none where the model was not evaluated.
  """
  folder = workdir / 'tiny'
  path = folder / 'eval' / f'qa_{model}.jsonl'
  if not path.is_file():
    return {}
  worlds = sorted(folder.glob('world-*/truth.json'))
  truth = Truth.load(worlds[0]) if worlds else None
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  values = qa.correctness(rows, [row['prediction'] for row in rows], truth)
  return {
    row['question_id']: Answer(row['video_name'], row.get('kind', ''), value)
    for row, value in zip(rows, values, strict=True)
  }
