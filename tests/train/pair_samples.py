"""Pairs of answers for tests, and the truth about some of them."""

import numpy as np

from vlm_rlaif_jax.data.examples import Example, Pair
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth

RIGHT, WRONG = 'The red circle moves left.', 'The red circle moves right.'
FACTS = {'facts': [('red circle', 0, 'moves left')], 'span': [('red circle', 0)]}
TRUTH = Truth({'a': {**FACTS, 'phase': 0}, 'b': {**FACTS, 'phase': 0}})


def sample(key, answers, preferred, video, frames=4, lengths=(5, 5)):
  example = Example(key, Video((video,)), (('What happens?', ''),), {})
  ids = tuple(np.ones(length, np.int32) for length in lengths)
  return PairSample(Pair(example, answers, preferred), ids, frames, 8)
