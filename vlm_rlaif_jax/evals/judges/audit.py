"""What a judge says where the right verdict is known, and whether it says it twice.

reference        the reference as prediction: should be near 5
shuffled         the reference of another case as prediction: should be near 0
self_agreement   the same answers judged twice: share of equal verdicts, and kappa
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.evals import agreement
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Case, Judge, Verdict

AUDIT_CASES = 50  # judged with a known verdict
REPEATED_CASES = 100  # judged twice


def with_reference(cases: Sequence[Case]) -> list[Case]:
  """Returns the cases with the reference in place of every prediction."""
  return [_answered(case, case.reference) for case in cases]


def with_shuffled(cases: Sequence[Case], rng: np.random.Generator) -> list[Case]:
  """Returns the cases with the reference of another, which says something else.

  A case to which no other reference is another answer is left out.
  """
  texts = [normalize(case.reference) for case in cases]
  result = []
  for case, text in zip(cases, texts, strict=True):
    others = [i for i, other in enumerate(texts) if other != text]
    if others:
      other = cases[others[rng.integers(len(others))]]
      result.append(_answered(case, other.reference))
  return result


def _answered(case: Case, answer: str) -> Case:
  return dataclasses.replace(case, predictions=(answer,) * len(case.predictions))


def audit(
  judge: Judge, repeated: Judge, cases: Sequence[Case], seed: int = 0
) -> dict[str, Any]:
  """Returns by criterion how a judge does where the verdict is known.

  Args:
    repeated: the same judge without what the first remembers.
    cases: of one criterion or several; a sample of each is judged.
    seed: of the sample.

  Returns:
    by criterion, `reference` and `shuffled`: mean score, share that is called right,
    cases, unscored ones; and `self_agreement` as of `agreement.of_criterion`.
  """
  groups: dict[str, list[Case]] = {}
  for case in cases:
    if case.reference:
      groups.setdefault(case.criterion, []).append(case)
  result = {}
  for criterion, group in groups.items():
    rng = np.random.default_rng(seed)
    order = [group[i] for i in rng.permutation(len(group))]
    sample = order[:AUDIT_CASES]
    twice = order[:REPEATED_CASES]
    result[criterion] = {
      'reference': _summary(judge.verdicts(with_reference(sample))),
      'shuffled': _summary(judge.verdicts(with_shuffled(sample, rng))),
      'self_agreement': agreement.of_criterion(
        judge.verdicts(twice), repeated.verdicts(twice)
      ),
    }
  return result


def _summary(verdicts: Sequence[Verdict]) -> Mapping[str, Any]:
  scores = [one.score for one in verdicts if one.score is not None]
  right = [one.correct for one in verdicts if one.correct is not None]
  return {
    'score': float(np.mean(scores)) if scores else None,
    'right': float(np.mean(right)) if right else None,
    'n': len(scores),
    'unscored': len(verdicts) - len(scores),
  }
