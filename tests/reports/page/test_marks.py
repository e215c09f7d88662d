"""Words that differ, and claims that are wrong, are found where they are."""

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.reports.page import marks

TRUTH = Truth(
  {
    'long': {
      'facts': [['red circle', 0, 'moves left'], ['blue ring', 0, 'stays']],
      'span': [['red circle', 0]],
      'phase': 0,
    },
    'short': {'facts': [], 'span': [], 'phase': -1},
  }
)


def test_words_that_only_one_text_has():
  before, after = 'a red  circle moves', 'a blue circle moves up'
  assert marks.changed_words(before, after) == ({1}, {1, 4})
  assert marks.changed_words('', 'word') == (set(), {0})
  assert marks.changed_words('same  words', 'same words') == (set(), set())


def wrong(text, key='long', truth=TRUTH):
  return [text[first:last] for first, last in marks.wrong_spans(text, key, truth)]


def test_claims_that_are_not_so():
  text = 'The red circle moves left and the blue ring moves up. It vanishes, he sings.'
  assert wrong(text) == ['the blue ring moves up', 'It vanishes', 'he sings']
  listing = 'There are two objects: a red circle and a green square.'
  assert wrong(listing) == ['a green square']
  assert wrong('The red  circle\nmoves left') == ['The red  circle', 'moves left']


def test_nothing_is_marked_where_nothing_decides():
  assert wrong('The red circle vanishes', 'short') == []
  assert wrong('The red circle vanishes', 'absent') == []
  assert wrong('The red circle vanishes', truth=None) == []
  assert wrong('\u0130 the red circle vanishes') == []  # longer in lower case


def test_marks_overlap_and_texts_are_escaped():
  text = 'The <b> circle moves up.'
  marked = marks.marked(text, {1, 4}, [(0, len('The <b> circle'))])
  assert marked == (
    '<span class="wrong">The</span> '
    '<span class="wrong"><ins>&lt;b&gt;</ins></span> '
    '<span class="wrong">circle</span> moves <ins>up.</ins>'
  )
