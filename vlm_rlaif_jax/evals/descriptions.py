"""How true and how complete descriptions are, where the facts of a clip are known."""

from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.data.world.claims import Score
from vlm_rlaif_jax.data.world.truth import Truth


def rates(scores: Sequence[Score]) -> dict[str, float]:
  """Returns rates over all claims of all descriptions.

  The claims are counted as CHAIR counts objects (Rohrbach et al. 2018).

  Returns:
    hallucination_rate: invented claims among all claims.
    fact_precision: its complement.
    fact_recall: facts stated among all facts.
  """
  right = sum(score.right for score in scores)
  invented = sum(score.invented for score in scores)
  recalled = sum(score.recalled for score in scores)
  required = sum(score.required for score in scores)
  rate = invented / max(right + invented, 1)
  return {
    'hallucination_rate': rate,
    'fact_precision': 1 - rate,
    'fact_recall': recalled / max(required, 1),
  }


def scores(
  rows: Sequence[dict[str, Any]], predictions: Sequence[str], truth: Truth | None
) -> dict[str, Any]:
  """Returns `rates` and the number of descriptions; nothing if no facts are known."""
  if truth is None:
    return {}
  each = [
    truth.score(row['question_id'], prediction)
    for row, prediction in zip(rows, predictions, strict=True)
    if row['question_id'] in truth
  ]
  return {**rates(each), 'descriptions': len(each)} if each else {}
