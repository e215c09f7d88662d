"""Gold answers of the RL data; register row B07."""

import pytest

from vlm_rlaif_jax.data import answer_match
from vlm_rlaif_jax.data.examples import DataError


@pytest.mark.parametrize(
  'kind, answer, expected',
  [
    ('general', 'B. A dog.', 0.0),
    ('b', 'B. A dog.', 1.0),
    ('b', 'The correct option is B.', 1.0),
    ('b', 'The correct option is A.', 0.0),
    ('no', ' No, it is not.', 0.5),
    ('no', 'Yes.', -0.5),
    ('no', 'Perhaps.', 0.0),
    ('yes', 'Yes.', 0.0),
  ],
)
def test_agreement(kind, answer, expected):
  assert answer_match.agreement(kind, answer) == expected


def test_records():
  assert answer_match.answer_type({}, 'row 1') == ('general', 1.0)
  row = {'answer_type': 'B', 'length_bonus_multiplier': 2}
  assert answer_match.answer_type(row, 'row 1') == ('b', 2.0)
  with pytest.raises(DataError, match=r'row 3: answer_type .* got 7'):
    answer_match.answer_type({'answer_type': 7}, 'row 3')
  with pytest.raises(DataError, match='length_bonus_multiplier'):
    answer_match.answer_type({'length_bonus_multiplier': 'x'}, 'row 3')
