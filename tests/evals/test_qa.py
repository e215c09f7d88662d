"""Which answers are correct, on cases that can be checked by eye."""

import pytest

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import qa

FACTS = [('red circle', 0, 'moves left'), ('red circle', 1, 'stays')]
TRUTH = Truth(
  {
    'long': {
      'facts': FACTS,
      'span': [['red circle', 0], ['red circle', 1]],
      'phase': -1,
    },
    'short': {'facts': FACTS, 'span': [], 'phase': -1},
  }
)


@pytest.mark.parametrize(
  'text, normal',
  [('The A.', 'a'), ('A', 'a'), ('a dog', 'dog'), ('?', '?'), ('', ''), (' An ', 'an')],
)
def test_a_text_of_articles_alone_stays(text, normal):
  assert qa.normalize(text) == normal


@pytest.mark.parametrize(
  'first, second',
  [
    ('1,000', '1000'), ('caf\u00e9', 'cafe\u0301'), ('\u22125', '-5'),
    ('T-shirt', 't shirt'), ('zero\u200bwidth', 'zerowidth'), ('\uff15', '5'),
    ('3.5.', '3.5'), ('a: b', 'b'),
  ],
)  # fmt: skip
def test_texts_that_are_the_same(first, second):
  assert qa.normalize(first) == qa.normalize(second)


@pytest.mark.parametrize(
  'first, second',
  [
    ('-5', '5'), ('3.5', '3 5'), ('5:30', '5 30'), ('1/2', '1 2'), ('1,5', '15'),
    ('\u0915\u0940', '\u0915\u093e'),  # two words of Hindi that differ in a vowel
    ('\u0e01\u0e48', '\u0e01\u0e49'),  # of Thai, in a tone
  ],
)  # fmt: skip
def test_texts_that_differ(first, second):
  assert qa.normalize(first) != qa.normalize(second)


def test_characters_that_are_words_are_told_apart():
  assert qa.normalize('\u4e00\u53ea\u732b\u3002') == '\u4e00 \u53ea \u732b'


@pytest.mark.parametrize(
  'prediction, correct',
  [('Yes', True), ('yes.', True), ('The Yes', True), ('No', False), ('', False)],
)
def test_short_answers_match_word_for_word(prediction, correct):
  row = {'question_id': 'short', 'answer': 'Yes'}
  assert qa.is_correct(row, prediction, TRUTH) == correct
  assert qa.is_correct(row, prediction, None) == correct


@pytest.mark.parametrize(
  'prediction, correct',
  [
    ('First the red circle moves left, then it stays.', True),
    ('then the red circle stays. first it moves left', True),
    ('First the red circle moves left.', False),  # incomplete
    ('First the red circle moves left, then it moves up.', False),  # invented
    ('First the red circle moves left, then it stays. Hello.', False),  # unreadable
  ],
)
def test_long_answers_are_scored_by_their_claims(prediction, correct):
  row = {'question_id': 'long', 'answer': 'unused'}
  assert qa.is_correct(row, prediction, TRUTH) == correct
