"""How true and how complete descriptions are, where the facts of a clip are known."""

from vlm_rlaif_jax.data.world.language import Score


def rates(scores: list[Score]) -> dict[str, float]:
  """Over all claims of all descriptions (as CHAIR counts objects; Rohrbach et al.
  2018).

  Returns:
    hallucination_rate: invented claims among all claims; fact_precision: its
    complement; fact_recall: facts stated among all facts.
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
