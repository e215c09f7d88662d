import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.inference import scoring
from vlm_rlaif_jax.settings.constants import PAD

EOS, SPACED, GLUED = 2, 1577, 29973
P = PAD


@pytest.mark.parametrize(
  ('answer', 'expected'),
  [
    ((5, 6, 2, P, P, P), (5, 6, 2, P, P, P)),
    ((5, 1577, 6, 7, 2, P), (5, 1577, P, P, P, P)),
    ((5, 29973, 6, 1577, 2, P), (5, 29973, P, P, P, P)),
    ((5, 1577, 6, 29973, 2, P), (5, 1577, 6, 29973, P, P)),
    ((5, 6, 7, 8, 9, 9), (5, 6, 7, 8, 9, 9)),
    ((0, 6, 0, 2, P, P), (0, 6, 0, 2, P, P)),  # 0 is a token like others
  ],
)
def test_answers_are_cut_as_the_reference_cuts_them(answer, expected):
  """Register B06 in docs/departures.md: the last id of the list overrules."""
  tokens, stopped = scoring.cut(
    jnp.array([answer]), EOS, (SPACED, GLUED), 'question_last'
  )
  np.testing.assert_array_equal(tokens[0], expected)
  assert bool(stopped[0]) == (EOS in expected)


def test_answers_are_cut_at_the_earliest_stop_off_parity():
  answers = jnp.array([(5, 1577, 6, 29973, 2, P), (5, 2, 6, 29973, 2, P)])
  tokens, stopped = scoring.cut(answers, EOS, (SPACED, GLUED), 'question_first')
  np.testing.assert_array_equal(tokens, [(5, 1577, P, P, P, P), (5, 2, P, P, P, P)])
  np.testing.assert_array_equal(stopped, [False, True])
  tokens, _ = scoring.cut(answers, EOS, (SPACED, GLUED), 'eos')
  np.testing.assert_array_equal(tokens[0], answers[0])


def test_another_end_counts_as_the_end_of_sequence():
  answers = jnp.array([(5, 3, 6, 2, P, P), (5, 2, 3, 6, P, P), (5, 6, 7, 8, 9, 9)])
  tokens, stopped = scoring.cut(answers, EOS, other_ends=(3,))
  np.testing.assert_array_equal(
    tokens, [(5, 3, P, P, P, P), (5, 2, P, P, P, P), (5, 6, 7, 8, 9, 9)]
  )
  np.testing.assert_array_equal(stopped, [True, True, False])


def test_pads_go_to_the_left_and_the_order_stays():
  """Left pads, right pads and the place of a token that was removed all go."""
  ids = jnp.array([(P, P, 1, -200, 7, 0, P, 9, 2, P, P)])
  np.testing.assert_array_equal(
    scoring.pads_to_the_left(ids)[0], (P, P, P, P, P, 1, -200, 7, 0, 9, 2)
  )


@pytest.mark.parametrize('size', [2, 4, 8, 16])
def test_micro_batches_give_the_rows_back_in_order(size):
  x = jnp.arange(16.0).reshape(8, 2)
  out = scoring.in_micro_batches(lambda part: part * 2, x, size)
  np.testing.assert_array_equal(out, x * 2)
