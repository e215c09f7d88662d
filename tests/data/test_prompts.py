import pytest

from vlm_rlaif_jax.data import prompts


def test_narratives_keep_the_order_of_the_clips():
  assert prompts.narrative(['A dog.', 'It runs.']) == 'Clip 1: A dog.\nClip 2: It runs.'


def test_statements_are_the_beginnings_of_an_answer():
  text = 'It stays, then it goes. It is 1.5 m.'
  for ended in (True, False):
    assert prompts.statements(text, ended) == [
      'It stays,', 'It stays, then it goes.', text
    ]  # fmt: skip
    assert prompts.statements('Red', ended) == ['Red']


@pytest.mark.parametrize(
  ('text', 'starts', 'rest'),
  [
    ('It stays, then it goes', ['It stays,'], True),
    ('The man opens a door. He leaves', ['The man opens a door.'], True),
    ('It stays. "', ['It stays.'], False),  # no word, no statement
    ('It stays. \n', ['It stays.'], False),
  ],
)
def test_what_follows_the_last_punctuation_is_a_statement_of_an_answer_that_ended(
  text, starts, rest
):
  """Of one that was cut at its limit, it is unfinished."""
  assert prompts.statements(text, ended=False) == starts
  assert prompts.statements(text, ended=True) == [*starts, *([text] if rest else [])]


@pytest.mark.parametrize(
  'starts',
  [
    ['The sign says "stop."', 'The sign says "stop." The dog runs.'],
    ['He runs (he wears red.)', 'He runs (he wears red.) Then he stops.'],
    ['**It is red.**', '**It is red.** It goes'],
    ['- a red ring', '- a red ring\n- a blue ball'],
    ['1. He runs', '1. He runs\n2. He sits.'],  # '1.' says nothing
    ['It shows: \n(a) a ring', 'It shows: \n(a) a ring\n(b) a ball'],
    ['He runs', 'He runs \n\nHe sits.'],
    ['红色的球在跳。', '红色的球在跳。蓝色的圆在动。'],
    ['他说：“停。”', '他说：“停。”他走了'],
    ['3.', '3. They are red.'],  # how many there are
    ['No.', 'No. It goes left.'],
    ['It stays…', 'It stays… It goes.'],
    ['A red ring', 'A red ring\nA blue ball'],
    ['A man', 'A man\nruns on.'],  # a line that was broken, or an item
  ],
)
def test_a_statement_ends_at_quotation_marks_lines_and_marks_of_other_scripts(starts):
  """Else only the last of several would be judged, and the others could be false."""
  assert prompts.statements(starts[-1], ended=True) == starts


def test_filling_a_template_is_one_pass():
  """An answer that contains a brace, or a field's name in braces, stays as it is."""
  text = prompts.fill('{a} | {b} | {c}', a='{b}', b='x {', c='y')
  assert text == '{b} | x { | y'
