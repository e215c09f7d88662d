import pytest

from vlm_rlaif_jax.data import words


@pytest.mark.parametrize(
  ('text', 'count'),
  [
    ('It moves left.', 3),
    ('- It is 1.5 m', 5),
    ('红色的球向左移动，然后停下。', 12),  # no space tells its words apart
    ('赤いボールが、左へ。', 8),
    ('A 球 moves', 3),
    ('', 0),
  ],
)
def test_characters_of_scripts_without_spaces_are_words(text, count):
  assert words.count(text) == count
