"""The stages of a curriculum, as the summary has them."""

import types

import numpy as np
import pytest

from vlm_rlaif_jax.data import readers
from vlm_rlaif_jax.data.batches import BLANK, Step
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.settings.sft import SftConfig
from vlm_rlaif_jax.stages import sft


def test_a_long_answer_without_spaces_is_a_long_one():
  turns = (('What?', '球。'), ('And?', '红色的球向左移动，然后停下。'))
  assert readers.answer_words(Example('a', None, turns, {})) == 12


@pytest.mark.parametrize(
  ('order', 'indices', 'expected'),
  [
    ('short_long', [[0, 1], [2, BLANK], [3, 4], [5, 6]], [('short', 2), ('long', 2)]),
    ('long_short', [[3, 6], [2, 0]], [('long', 1), ('short', 1)]),
    ('mixed', [[0, 6], [1, 2]], [('mixed', 2)]),
  ],
)
def test_each_stage_has_its_steps(order, indices, expected):
  """Three short samples, numbered first, and four long ones."""
  settings = types.SimpleNamespace(sft=SftConfig(order=order))
  parts = {'short': [None] * 3, 'long': [None] * 4}
  steps = [Step((), np.array(one)) for one in indices]
  assert sft.stages_of(settings, parts, steps) == expected
