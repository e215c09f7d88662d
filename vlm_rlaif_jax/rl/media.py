"""What PPO displays of its held-out responses, beside numbers."""

from collections.abc import Callable, Sequence

import numpy as np

from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.train import sinks
from vlm_rlaif_jax.train.sinks import Media

TEXTS = 8  # responses in a table
PICTURES = 4  # of them, with frames

Response = tuple[Example, np.ndarray, float]  # to what, token ids `int32[R]`, reward


def of_responses(
  responses: Sequence[Response],
  decode: Callable[[np.ndarray], str],
  data: DataConfig,
) -> Media:
  """Returns the first responses with frames, and histograms over all of them.

  Args:
    decode: token ids -> text.
    data: where the videos are, and how they are sampled.
  """
  rows = [
    (item.question, decode(ids), reward) for item, ids, reward in responses[:TEXTS]
  ]
  videos = [item.video for item, _, _ in responses[:PICTURES]]
  pictures = {
    f'held_out/video_{place}': strip
    for place, strip in enumerate(sinks.film_strips(videos, data))
    if strip is not None
  }
  return Media(
    texts={
      'held_out/responses': sinks.markdown(('question', 'response', 'reward'), rows)
    },
    pictures=pictures,
    histograms={
      'held_out/rewards': np.asarray([reward for *_, reward in responses]),
      'held_out/lengths': np.asarray([(ids != PAD).sum() for _, ids, _ in responses]),
    },
  )
