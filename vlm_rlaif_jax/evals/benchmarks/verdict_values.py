"""What of items and answers a judge reads, and its verdicts as values."""

import math
from collections.abc import Sequence

from vlm_rlaif_jax.data.prompts import EOS, VIDEO_MARK
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.eval import EvalConfig

BEST = 5.0  # of the scores of a judge


def judged_question(question: str, settings: EvalConfig) -> str:
  """Returns a question as the judge reads it.

  The reference leaves the placeholder in, as its files of predictions keep it.
  """
  return f'{VIDEO_MARK}\n{question}' if settings.keep_placeholder else question


def judged_prediction(answer: str, settings: EvalConfig) -> str:
  """Returns an answer as the judge reads it."""
  return answer if settings.keep_special_tokens else answer.removesuffix(EOS).strip()


def score_values(verdicts: Sequence[Verdict], settings: EvalConfig) -> list[float]:
  """Returns the score of each verdict, 0 to 5; NaN if it has none."""
  scores = [math.nan if one.score is None else float(one.score) for one in verdicts]
  if settings.truncate_scores:
    return [score if math.isnan(score) else float(math.trunc(score)) for score in scores]
  return scores


def correct_values(verdicts: Sequence[Verdict]) -> list[float]:
  """Returns 1.0 for right answers, 0.0 for others; NaN where the judge did not say."""
  return [math.nan if one.correct is None else float(one.correct) for one in verdicts]
