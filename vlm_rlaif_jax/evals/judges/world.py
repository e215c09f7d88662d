"""The judge of the built-in video world: it knows what happens in a clip.

An answer is read back into claims, `(object, phase, predicate)`, and each criterion is
5 times a share of them:

    answer        F1 of the claims; right if every fact in the scope of the question is
                  stated and nothing is invented
    correctness   precision: true claims among all claims
    detail        recall: facts stated among the facts in the scope
    context       claims about objects and phases in the scope, true or not, among all
    temporal      pairs of facts in different phases whose order the answer states,
                  among all such pairs in the scope; recall where there is no pair
    preference    the higher F1 is the better answer; the score is 5, 2.5 or 0
    consistency   facts that both answers state, among all that either states or that
                  are in the scope

The scope is what a complete answer covers. A clause that cannot be read is a claim that
is not true. Where the scope is empty the answer is short, and each criterion is 5 for a
normalized match with the reference and 0 without.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data.world import claims
from vlm_rlaif_jax.data.world.claims import ALL, EXISTS, Claim
from vlm_rlaif_jax.evals.judges import prompts
from vlm_rlaif_jax.evals.judges.exact import preferred
from vlm_rlaif_jax.evals.judges.usage import Usage, today
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST, LOWEST
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Case, Verdict
from vlm_rlaif_jax.version import __version__

VERSION = '1'  # of the shares above; a change makes another judge


class WorldJudge:
  """Judges by the facts of the clips.

  Args:
    records: by the key of an item, its `facts`, `span` and `phase`, as in
      `Truth.records`.
    answer_words: words of an answer that are read; 0: all.
  """

  def __init__(self, records: Mapping[str, Mapping[str, Any]], answer_words: int = 0):
    self.records, self.answer_words = records, answer_words
    self.usage = Usage()

  @property
  def identity(self) -> Mapping[str, str]:
    """Name and version; there is no prompt."""
    return {
      'name': 'world',
      'kind': 'world',
      'version': f'{VERSION} of {__version__}',
      'prompt': '',
      'answer_words': str(self.answer_words),
    }

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case; unscored where no facts are known."""
    self.usage.note('', today())
    return [self._verdict(case) for case in cases]

  def _verdict(self, case: Case) -> Verdict:
    prompts.check(case)
    record = self.records.get(case.key)
    if record is None:
      return Verdict(error=f'no facts are known of {case.key}')
    texts = [prompts.compared(text, self.answer_words) for text in case.predictions]
    asks = case.criterion == 'answer'
    if case.criterion == 'preference':
      return preferred(*(_value(record, case.reference, text) for text in texts))
    if not record['span']:
      right = all(normalize(text) == normalize(case.reference) for text in texts)
      return Verdict(HIGHEST if right else LOWEST, right if asks else None)
    if case.criterion == 'consistency':
      return Verdict(HIGHEST * consistency(record, texts[0], texts[1]))
    facts = _facts(record)
    score = claims.score_answer(facts, record['span'], record['phase'], texts[0])
    shares = {
      'answer': f1(score),
      'correctness': precision(score),
      'detail': recall(score),
      'context': context(record, texts[0]),
      'temporal': order(record, texts[0]),
    }
    is_right = score.invented == 0 and score.recalled == score.required
    return Verdict(HIGHEST * shares[case.criterion], is_right if asks else None)


def _value(record: Mapping[str, Any], reference: str, text: str) -> float:
  """Returns F1 of an answer, or of a short one whether it is the reference."""
  if not record['span']:
    return float(normalize(text) == normalize(reference))
  facts = _facts(record)
  return f1(claims.score_answer(facts, record['span'], record['phase'], text))


def precision(score: claims.Score) -> float:
  """Returns the share of claims that are true; an answer without any has none right.

  Where nothing is in the scope, no claim is what a right answer makes.
  """
  stated = score.right + score.invented
  return score.right / stated if stated else float(score.required == 0)


def recall(score: claims.Score) -> float:
  """Returns the share of facts in the scope that are stated."""
  return score.recalled / score.required if score.required else 1.0


def f1(score: claims.Score) -> float:
  """Returns the harmonic mean of precision and recall."""
  right, complete = precision(score), recall(score)
  return 2 * right * complete / (right + complete) if right + complete else 0.0


def context(record: Mapping[str, Any], text: str) -> float:
  """Returns the share of claims about what the question is about, true or not.

  A claim without a time, or a bare mention, is if its object is in the scope at all.
  """
  stated, unread = claims.read_claims(text, record['phase'])
  distinct = set(stated)
  scope = _scope(record)
  objects = {name for name, _ in scope}
  inside = [
    (name, phase) in scope if phase != ALL else name in objects
    for name, phase, _ in distinct
  ]
  count = len(inside) + unread
  return sum(inside) / count if count else 0.0


def order(record: Mapping[str, Any], text: str) -> float:
  """Returns the share of pairs of facts whose order in time an answer states.

  Both events of a pair must be stated, in whatever phases, the earlier one earlier.
  """
  facts = _required(record)
  pairs = [(a, b) for a in facts for b in facts if a[1] < b[1]]
  if not pairs:
    score = claims.score_answer(_facts(record), record['span'], record['phase'], text)
    return recall(score)
  times: dict[tuple[str, str], set[int]] = {}
  for name, phase, predicate in claims.read_claims(text, record['phase'])[0]:
    if phase != ALL:
      times.setdefault((name, predicate), set()).add(phase)
  right = sum(
    any(
      early < late
      for early in times.get((a[0], a[2]), ())
      for late in times.get((b[0], b[2]), ())
    )
    for a, b in pairs
  )
  return right / len(pairs)


def consistency(record: Mapping[str, Any], first: str, second: str) -> float:
  """Returns the share of facts that both answers state among everything that matters.

  That is what either answer states, unreadable clauses included, and what is in the
  scope. Bare mentions of objects are left out: they say nothing about what happens.
  """
  sides = [claims.read_claims(text, record['phase']) for text in (first, second)]
  stated = [{claim for claim in read if claim[2] != EXISTS} for read, _ in sides]
  facts = set(_facts(record))
  agreed = stated[0] & stated[1] & facts
  everything = stated[0] | stated[1] | set(_required(record))
  count = len(everything) + sum(unread for _, unread in sides)
  return len(agreed) / count if count else 0.0


def _facts(record: Mapping[str, Any]) -> list[Claim]:
  return [(name, phase, predicate) for name, phase, predicate in record['facts']]


def _scope(record: Mapping[str, Any]) -> set[tuple[str, int]]:
  return {(name, phase) for name, phase in record['span']}


def _required(record: Mapping[str, Any]) -> list[Claim]:
  """Returns the facts in the scope of the question."""
  scope = _scope(record)
  return [fact for fact in _facts(record) if fact[:2] in scope]
