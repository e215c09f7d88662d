"""Judges the answers to a benchmark, and keeps every verdict beside them.

The file of verdicts is written again as a whole, from the judge, or from what it
remembers: whether a verdict costs a request is the judge's own matter.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.evals.benchmarks.answering import judged_answers
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.evals.records import Case, Item, Judge, Verdict
from vlm_rlaif_jax.settings.eval import EvalRun

Verdicts = dict[str, list[Verdict]]
"""By criterion, a verdict for each item."""


def file_name(model: str, judge: Mapping[str, str]) -> str:
  """Returns the name of the file of verdicts of a judge on a model."""
  safe = re.sub(r'[^A-Za-z0-9.-]+', '-', judge['name']).strip('-.') or 'judge'
  return f'verdicts_{model}_{safe}.jsonl'


def judge_answers(
  judge: Judge,
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Sequence[Mapping[str, Any]],
  settings: EvalRun,
  path: pathlib.Path,
) -> Verdicts:
  """Returns verdicts on the answers to a benchmark; {} where no judge reads them.

  Args:
    rows: of an `AnswerFile`, in the order of the items.
    path: where the verdicts are written, a row each.
  """
  answers = [judged_answers(row, settings) for row in rows]
  cases = benchmark.cases(items, answers, settings)
  if not cases:
    return {}
  verdicts = _verdicts(judge, cases)
  lines = [
    json.dumps(
      {'key': case.key, 'criterion': case.criterion, **dataclasses.asdict(verdict)}
    )
    for case, verdict in zip(cases, verdicts, strict=True)
  ]
  hosts.write_atomically(path, '\n'.join(lines) + '\n')
  return by_criterion(items, cases, verdicts)


def _verdicts(judge: Judge, cases: Sequence[Case]) -> list[Verdict]:
  """Returns the verdicts; a judge that runs on no device runs on the first host."""
  if getattr(judge, 'runs_on_devices', False):
    return judge.verdicts(cases)

  def own() -> list[dict]:
    if not hosts.is_first():
      return []
    return [dataclasses.asdict(verdict) for verdict in judge.verdicts(cases)]

  first, *_ = hosts.gather(hosts.together(own))
  return [Verdict(**values) for values in first]


def by_criterion(
  items: Sequence[Item], cases: Sequence[Case], verdicts: Sequence[Verdict]
) -> Verdicts:
  """Returns verdicts on cases as one for each item, criterion by criterion."""
  given = {(c.criterion, c.key): v for c, v in zip(cases, verdicts, strict=True)}
  missing = Verdict(error='no case')
  return {
    criterion: [given.get((criterion, item.key), missing) for item in items]
    for criterion in dict.fromkeys(case.criterion for case in cases)
  }
