"""What files of verdicts and of preferences say about the judges who left them."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import agreement
from vlm_rlaif_jax.evals.judges import wins
from vlm_rlaif_jax.evals.judges.verdict_text import MIDDLE
from vlm_rlaif_jax.reports.page import former, html
from vlm_rlaif_jax.reports.page.benchmarks import NAMES
from vlm_rlaif_jax.reports.page.run_files import RunFiles

Cells = list[Any]


def judge_pairs(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each two judges of the answers of a model."""
  for folder in sorted((run.folder / 'eval').glob('*/')):
    for answers in sorted(folder.glob('answers_*.jsonl')):
      model = answers.stem.removeprefix('answers_')
      if '.' in model:  # answers of another run, moved away
        continue
      judges = {
        path.stem.removeprefix(f'verdicts_{model}_'): _verdicts(run, path, model)
        for path in sorted(folder.glob(f'verdicts_{model}_*.jsonl'))
      }
      for first, second in _pairs(list(judges)):
        shared = judges[first].keys() & judges[second].keys()
        pairs = [(judges[first][key], judges[second][key]) for key in sorted(shared)]
        if pairs:
          ratings = np.asarray(pairs, int)
          agree = float(np.mean(ratings[:, 0] == ratings[:, 1]))
          kappa = agreement.kappa(*ratings.T.tolist())
          cells = [len(pairs), html.share(agree), html.number(kappa)]
          yield [folder.name, run.label, model, f'{first}, {second}', *cells]


def margins(run: RunFiles) -> dict[str, list[float]]:
  """Returns by judge the score of RLAIF less that of SFT, over all benchmarks."""
  by_judge: dict[str, list[float]] = {}
  for after in sorted((run.folder / 'eval').glob('*/verdicts_rlaif_*.jsonl')):
    judge = after.stem.removeprefix('verdicts_rlaif_')
    before = after.with_name(f'verdicts_sft_{judge}.jsonl')
    if before.is_file():
      first, second = _scores(run, before, 'sft'), _scores(run, after, 'rlaif')
      by_judge.setdefault(judge, []).extend(
        second[key] - first[key] for key in first if key in second
      )
  return by_judge


def _scores(
  run: RunFiles, path: pathlib.Path, model: str
) -> dict[tuple[str, str], float]:
  """Returns the scores of a file of verdicts by key and criterion."""
  return {
    (str(row.get('key')), str(row.get('criterion'))): row['score']
    for row in former.current(run, path, [model])
    if html.is_number(row.get('score'))
  }


def _pairs(values: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yields each two of some names."""
  for i, first in enumerate(values):
    yield from ((first, second) for second in values[i + 1 :])


def _verdicts(
  run: RunFiles, path: pathlib.Path, model: str
) -> dict[tuple[str, str], bool]:
  """Returns by key and criterion whether an answer was found right.

  Where only scores are given, from 3 on.
  """
  verdicts = {}
  for row in former.current(run, path, [model]):
    correct = row.get('correct')
    if correct is None and html.is_number(row.get('score')):
      correct = row['score'] >= 3
    if correct is not None:
      verdicts[str(row.get('key')), str(row.get('criterion'))] = bool(correct)
  return verdicts


def orders(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each judge of preferences between RLAIF and a control."""
  for path in sorted((run.folder / 'eval').glob('*/wins_*.jsonl')):
    control, _, judge = path.stem.removeprefix('wins_').partition('_')
    scores: dict[str, dict[str, float | None]] = {}
    for row in former.current(run, path, [control, 'rlaif']):
      if row.get('raw') != wins.EQUAL:
        scores.setdefault(str(row['key']), {})[row['order']] = row['score']
    both = [
      (one[wins.ORDERS[0]], one[wins.ORDERS[1]])
      for one in scores.values()
      if all(html.is_number(one.get(order)) for order in wins.ORDERS)
    ]
    if not both:
      continue
    # Of the answer that stands first; that of RLAIF does in the second order.
    first = np.sign(np.asarray(both, float) - MIDDLE)
    points = first[:, 1] - first[:, 0]
    chosen = float(np.mean(0.5 + first / 2))
    yield [
      *(path.parent.name, run.label, NAMES.get(control, control), judge, len(both)),
      *(int(np.sum(points > 0)), int(np.sum(points == 0)), int(np.sum(points < 0))),
      html.share(float(np.mean(first[:, 0] == -first[:, 1]))),
      html.share(chosen),
    ]
