"""What RLAIF changes in a cell of the study, and how far one cell is ahead of another.

Both are known question by question: policies before and after, or of two cells, have
answered the same questions about the same clips, so that their difference is known
better than either of them.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import qa, statistics
from vlm_rlaif_jax.settings.sections import LONG_KINDS

FILE = 'summary.json'
# Files in the folder of a cell.
REFUSED = 'refused'  # the stage that refuses to run
FLAGS = 'flags.json'  # by stage, what it was run with; null where it is still to run
NORMAL = 1.96  # half of the width of a 95 % interval, in standard errors
FINAL = 'final'  # all questions, RLAIF alone
PARTS = ('long', 'short', 'all', FINAL)  # of the questions; but for FINAL, from SFT on


class Answer(NamedTuple):
  """An answer to a question of one kind about a video; right is 1.0 or 0.0."""

  video: str
  kind: str
  right: float


class Difference(NamedTuple):
  """What one question adds to a mean, and the video that it is about."""

  video: str
  value: float


def is_unfinished(workdir: pathlib.Path) -> bool:
  """Returns whether a stage of a cell is still to run, or refuses to.

  What is there of the stages behind it is of a former run.
  """
  record = workdir / FLAGS
  flags = json.loads(record.read_text()) if record.is_file() else {}
  return (workdir / REFUSED).is_file() or None in flags.values()


def summaries(
  workdir: pathlib.Path, sizes: Mapping[str, str]
) -> dict[str, dict[str, Any]] | None:
  """Returns the summaries of some stages of a run; None unless all are done.

  Args:
    sizes: stage -> the size that it ran in.
  """
  if is_unfinished(workdir):
    return None
  paths = {stage: workdir / size / stage / FILE for stage, size in sizes.items()}
  if not all(path.is_file() for path in paths.values()):
    return None
  return {stage: json.loads(path.read_text()) for stage, path in paths.items()}


def change(
  root: pathlib.Path, cell: str, seeds: Sequence[int], part: str
) -> dict[str, Any] | None:
  """Returns what RLAIF changes in a cell; None where no such question was answered.

  Args:
    part: one of `PARTS`.
  """
  return over_seeds(
    [list(gains(root / f'{cell}-{seed}', part).values()) for seed in seeds]
  )


def lead(
  root: pathlib.Path, ahead: str, behind: str, seeds: Sequence[int], part: str
) -> dict[str, Any] | None:
  """Returns by how much one cell gains more than another, over the seeds of both.

  Args:
    seeds: that both have run.
    part: one of `PARTS`.

  Returns:
    as `over_seeds`; None without seeds, or where one of them lacks answers.
  """
  differences = []
  for seed in seeds:
    first, second = (gains(root / f'{name}-{seed}', part) for name in (ahead, behind))
    keys = sorted(first.keys() & second.keys())
    if not keys:
      return None
    differences.append(
      [Difference(first[k].video, first[k].value - second[k].value) for k in keys]
    )
  return over_seeds(differences)


def over_seeds(differences: Sequence[Sequence[Difference]]) -> dict[str, Any] | None:
  """Returns the mean over the questions of all seeds, its error and 95 % interval.

  Seeds share their clips, and questions their seed, so the standard error is robust to
  both (two-way clusters; Cameron, Gelbach and Miller 2011): the variance over clips,
  whichever seed answered, and over seeds, less that over clips of a seed. It is never
  less than over clips alone. One seed says nothing of others, and three say little.

  Args:
    differences: of each seed.

  Returns:
    change, error and interval; None without a question. Of a single clip nothing is
    known: the error is None, and the interval is that of any share.
  """
  rows = [(seed, *one) for seed, all_of in enumerate(differences) for one in all_of]
  if not rows:
    return None
  seeds, videos, values = zip(*rows, strict=True)
  mean = float(np.mean(values))
  error = statistics.standard_error(values, videos)
  if error is None:
    return {'change': mean, 'error': None, 'interval': (-1.0, 1.0)}
  by_seed = statistics.standard_error(values, [str(seed) for seed in seeds])
  if by_seed is not None:
    pairs = [f'{seed} {video}' for seed, video in zip(seeds, videos, strict=True)]
    both = statistics.standard_error(values, pairs) or 0.0
    error = math.sqrt(error**2 + max(0.0, by_seed**2 - both**2))
  interval = (mean - NORMAL * error, mean + NORMAL * error)
  return {'change': mean, 'error': error, 'interval': interval}


def gains(workdir: pathlib.Path, part: str) -> dict[str, Difference]:
  """Returns what RLAIF gained at each question; {} where there are no answers.

  Args:
    part: one of `PARTS`.
  """
  after = answers(workdir, 'rlaif')
  if part == FINAL:
    return {key: Difference(one.video, one.right) for key, one in after.items()}
  before = answers(workdir, 'sft')
  return {
    key: Difference(one.video, one.right - before[key].right)
    for key, one in after.items()
    if key in before and (part == 'all' or (part == 'long') == (one.kind in LONG_KINDS))
  }


def answers(workdir: pathlib.Path, model: str) -> dict[str, Answer]:
  """Returns a model's answer to each question of a run, by the question's id.

  There are none where the model was not evaluated.
  """
  path = workdir / 'tiny' / 'eval' / f'qa_{model}.jsonl'
  return _graded(path, path.stat().st_mtime_ns) if path.is_file() else {}


@functools.cache  # every comparison of a cell reads its answers again
def _graded(path: pathlib.Path, changed: int) -> dict[str, Answer]:
  """Returns the answers in a file, as it was when it was last changed."""
  del changed
  truth = _truth(path.parent.parent)
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  values = qa.correctness(rows, [row['prediction'] for row in rows], truth)
  return {
    row['question_id']: Answer(row['video_name'], row.get('kind', ''), value)
    for row, value in zip(rows, values, strict=True)
  }


def _truth(folder: pathlib.Path) -> Truth | None:
  """Returns the facts of the world that a run was evaluated on; None: it has none.

  Raises:
    UserError: see `folders.folder_of_run`.
  """
  summary = json.loads((folder / 'eval' / 'summary.json').read_text())
  world = folders.folder_of_run(folder, summary.get('lineage', {}))
  return Truth.load(world / 'truth.json') if world else None
