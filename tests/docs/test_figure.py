"""The picture of the README: wrong statements are red; the choice is as described."""

import numpy as np

from examples import figure
from vlm_rlaif_jax.data.world.truth import Truth

FACTS = [['red ring', phase, 'stays'] for phase in range(3)]
SPAN = [['red ring', phase] for phase in range(3)]
TRUTH = Truth({'d': {'facts': FACTS, 'span': SPAN, 'phase': -1}})
RIGHT = 'There is one object: a red ring. First the red ring stays, then it stays, '


def row(end: str) -> dict:
  text = f'{RIGHT}finally it {end}.'
  return {'question_id': 'd', 'question': 'What happens?', 'prediction': text}


def test_wrong_statements_are_red():
  parts = figure.colored(row('moves left'), TRUTH, 'black')
  assert parts == [
    ('There is one object: a red ring.', 'black'),
    ('First the red ring stays,', 'black'),
    ('then it stays,', 'black'),
    ('finally it moves left.', figure.RED),
  ]


def test_a_wrong_statement_without_a_full_stop_is_red_unless_it_was_cut():
  wrong = row('moves left')
  wrong['prediction'] = wrong['prediction'].removesuffix('.')
  *_, last = figure.colored(wrong, TRUTH, 'black')
  assert last == ('finally it moves left', figure.RED)
  *_, last = figure.colored({**wrong, 'ended': False}, TRUTH, 'black')
  assert last == ('then it stays,', 'black')


def test_the_clip_is_the_one_that_changed_most():
  unchanged, repaired = (row('stays'), row('stays')), (row('moves up'), row('stays'))
  broken = (row('stays'), row('moves up'))
  pairs = [unchanged, repaired, broken]
  assert figure.choose(pairs, TRUTH, '') is repaired
  assert figure.note(pairs, TRUTH).endswith('1 only by RLAIF, 1 only by SFT.')


def test_the_picture_has_frames_and_text():
  frames = np.full((2, 8, 8, 3), 200, np.uint8)
  picture = figure.draw(frames, row('moves up'), row('stays'), TRUTH, 'a note')
  assert picture.width == figure.WIDTH
  colors = {color for _, color in picture.getcolors(2**24)}
  assert {(255, 255, 255), (200, 200, 200), (198, 40, 40), (27, 127, 59)} <= colors
