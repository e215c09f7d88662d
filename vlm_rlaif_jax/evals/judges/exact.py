"""Judges that compare texts: an answer is the reference, or it is wrong."""

from collections.abc import Mapping, Sequence

from vlm_rlaif_jax.evals.judges import prompts
from vlm_rlaif_jax.evals.judges.usage import Usage, today
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST, LOWEST, MIDDLE
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Case, Verdict
from vlm_rlaif_jax.version import __version__


class MatchJudge:
  """Gives 5 to an answer that is the reference, and 0 to any other.

  Args:
    normalized: whether case, punctuation, articles and spacing are left out of the
      comparison; else only the space around a text is.
    answer_words: words of an answer that are compared; 0: all.
  """

  def __init__(self, normalized: bool = True, answer_words: int = 0):
    self.normalized, self.answer_words = normalized, answer_words
    self.usage = Usage()

  @property
  def identity(self) -> Mapping[str, str]:
    """Name, version and what is compared; there is no prompt."""
    name = 'normalized' if self.normalized else 'exact'
    return {
      'name': name,
      'kind': name,
      'version': __version__,
      'prompt': '',
      'answer_words': str(self.answer_words),
    }

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case.

    Both answers of 'consistency' must match; of 'preference', the better one does, and
    where both do or neither does there is a tie.
    """
    self.usage.note('', today())
    return [self._verdict(case) for case in cases]

  def _verdict(self, case: Case) -> Verdict:
    prompts.check(case)
    simplify = normalize if self.normalized else str.strip
    predictions = [prompts.compared(p, self.answer_words) for p in case.predictions]
    matches = [simplify(p) == simplify(case.reference) for p in predictions]
    if case.criterion == 'preference':
      if not case.reference:
        return Verdict(error='no reference to compare with')
      return preferred(matches[0], matches[1])
    right = all(matches)
    return Verdict(
      HIGHEST if right else LOWEST, right if case.criterion == 'answer' else None
    )


def preferred(first: float, second: float) -> Verdict:
  """Returns the verdict that the answer with the higher value is better."""
  if first == second:
    return Verdict(MIDDLE)
  return Verdict(HIGHEST, True) if first > second else Verdict(LOWEST, False)
