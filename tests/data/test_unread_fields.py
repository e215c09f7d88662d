"""Fields that nothing reads are refused where they say what is not to be learned."""

import pytest

from tests.data.test_fields import ROUND, parse, row
from vlm_rlaif_jax.data import fields, unread_fields
from vlm_rlaif_jax.data.rows import DataError


@pytest.mark.parametrize(
  ('content', 'name'),
  [
    (row(weight=0.5), 'weight'),
    (row(meta={'loss_weight': 2}), r'meta\.loss_weight'),
    (row(conversations=[ROUND[0], {**ROUND[1], 'masked': True}]), 'masked'),
    (row(skip=True), 'skip'),
    (row(conversations=[ROUND[0], {**ROUND[1], 'weight': 0}]), 'weight'),
  ],
)
def test_what_is_learned_in_part_or_not_is_refused(content, name):
  with pytest.raises(DataError, match=f'row 3.*{name} says that this is not learned, '):
    parse(content)


def test_what_says_that_all_is_learned_is_read():
  more = {'weight': 1, 'loss_weight': 1.0, 'mask': [0, 1], 'skip': False, 'loss': 2.5}
  assert parse(row(**more)).turns == (('What?', 'Red.'),)


def test_fields_that_are_not_read_are_listed():
  names = unread_fields.unread(row(source='web', license=None, x=0), fields.ROW)
  assert sorted(names) == ['source', 'x']
