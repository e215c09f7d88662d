"""Clauses of an answer, and where they are."""

import pytest

from vlm_rlaif_jax.data.world import claims


@pytest.mark.parametrize(
  ('text', 'clauses'),
  [
    (
      'First the red circle moves left, then it stays.',
      [
        ('First the red circle moves left', ('red circle', 0, 'moves left')),
        ('then it stays', ('red circle', 1, 'stays')),
      ],
    ),
    (
      'There are two objects:  a red circle and a dog. It stays.',
      [('a red circle', ('red circle', -1, 'exists')), ('a dog', None),
       ('It stays', None)],
    ),
    (
      'Nothing is there.\n  The blue ring\tvanishes and he sings',
      [('The blue ring\tvanishes', ('blue ring', -1, 'vanishes')), ('he sings', None)],
    ),
    ('', []),
  ],
)  # fmt: skip
def test_clauses_have_places(text, clauses):
  read = [(text[a:b].strip(), claim) for a, b, claim in claims.read_clauses(text)]
  assert read == clauses
  values = [claim for _, claim in clauses]
  stated = [claim for claim in values if claim is not None]
  assert claims.read_claims(text) == (stated, values.count(None))
