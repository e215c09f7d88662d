"""The judge that knows the clips, against shares that are counted by hand."""

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import clips, questions
from vlm_rlaif_jax.evals.judges.prompts import CRITERIA
from vlm_rlaif_jax.evals.judges.world import WorldJudge
from vlm_rlaif_jax.evals.records import Case
from vlm_rlaif_jax.settings.sections import WorldConfig

FACTS = [
  ['red circle', 0, 'moves left'],
  ['red circle', 1, 'stays'],
  ['red circle', 2, 'vanishes'],
  ['blue ring', 1, 'appears'],
]
ALL_SPAN = [[name, phase] for name, phase, _ in FACTS]
RECORDS = {
  'all': {'facts': FACTS, 'span': ALL_SPAN, 'phase': -1},
  'circle': {'facts': FACTS, 'span': ALL_SPAN[:3], 'phase': -1},
  'one': {'facts': FACTS, 'span': ALL_SPAN[3:], 'phase': 1},
  'short': {'facts': FACTS, 'span': [], 'phase': -1},
}
TRUE = (
  'First the red circle moves left, then it stays, finally it vanishes. '
  'Then the blue ring appears.'
)


def score(key, criterion, *predictions, reference=TRUE):
  two = criterion == 'consistency'
  case = Case(
    key=key, criterion=criterion, questions=('What?', 'And?') if two else ('What?',),
    reference=reference, predictions=predictions,
  )  # fmt: skip
  (verdict,) = WorldJudge(RECORDS).verdicts([case])
  assert not verdict.error
  return verdict


@pytest.mark.parametrize(
  ('criterion', 'key', 'answer', 'share'),
  [
    *((name, 'all', TRUE, 1.0) for name in CRITERIA[1:5]),
    *((name, 'all', '', 0.0) for name in CRITERIA[1:5]),
    *((name, 'all', f'{TRUE}</s>', 1.0) for name in CRITERIA[1:5]),
    # Two of three claims are true; two of four facts are stated.
    ('correctness', 'all', 'First the red circle moves left, then it stays, finally it '
     'moves up.', 2 / 3),
    ('detail', 'all', 'First the red circle moves left, then it stays.', 2 / 4),
    # A clause that cannot be read is a claim that is not true.
    ('correctness', 'all', 'First the red circle moves left. A dog barks.', 1 / 2),
    ('context', 'all', 'First the red circle moves left. A dog barks.', 1 / 2),
    # A false claim about the object of the question is in its context.
    ('context', 'circle', 'First the red circle stays.', 1.0),
    ('context', 'circle', 'First the red circle stays. Then the blue ring appears.',
     1 / 2),
    ('context', 'circle', 'There are two objects: a red circle and a blue ring.',
     1 / 2),
    ('detail', 'one', 'The blue ring appears.', 1.0),
    # Pairs of the circle: left-stays, left-vanishes, stays-vanishes; the ring appears
    # after left and before vanishes: five pairs.
    ('temporal', 'all', 'First the red circle moves left, then it stays.', 1 / 5),
    # The order counts, not the phase.
    ('temporal', 'all', 'Then the red circle moves left, finally it stays.', 1 / 5),
    ('temporal', 'all', 'First the red circle stays, then it moves left.', 0.0),
    ('temporal', 'circle', 'First the red circle vanishes, then it stays, finally it '
     'moves left.', 0.0),
    # One phase alone has no order; what is stated in it counts.
    ('temporal', 'one', 'The blue ring appears.', 1.0),
    ('temporal', 'one', 'The blue ring stays.', 0.0),
  ],
)  # fmt: skip
def test_each_criterion_is_a_share_of_claims(criterion, key, answer, share):
  verdict = score(key, criterion, answer)
  assert verdict.score == pytest.approx(5 * share)
  assert verdict.correct is None


@pytest.mark.parametrize(
  ('answer', 'correct', 'share'),
  [
    (TRUE, True, 1.0),
    # Precision 1, recall 1/2.
    ('First the red circle moves left, then it stays.', False, 2 / 3),
    # Precision 4/5, recall 1.
    (TRUE + ' First the blue ring stays.', False, 2 * 0.8 / 1.8),
    ('A dog barks.', False, 0.0),
  ],
)
def test_a_right_answer_states_all_and_invents_nothing(answer, correct, share):
  verdict = score('all', 'answer', answer)
  assert verdict.correct is correct
  assert verdict.score == pytest.approx(5 * share)


@pytest.mark.parametrize(
  ('first', 'second', 'share'),
  [
    (TRUE, TRUE, 1.0),
    (TRUE, 'Then the blue ring appears.', 1 / 4),
    # The same wrong answer twice is consistent, and not right.
    ('First the red circle stays.', 'First the red circle stays.', 0.0),
    # Agreed: one fact. Stated or in the scope: four facts and one invention.
    ('First the red circle moves left, then it moves up.',
     'First the red circle moves left.', 1 / 5),
    ('', '', 0.0),
  ],
)  # fmt: skip
def test_consistency_is_what_both_state_and_is_right(first, second, share):
  verdict = score('all', 'consistency', first, second)
  assert verdict.score == pytest.approx(5 * share)


def test_the_better_answer_is_preferred():
  half = 'First the red circle moves left, then it stays.'
  for pair, expected in (
    ((TRUE, half), (5.0, True)),
    ((half, TRUE), (0.0, False)),
    ((half, half), (2.5, None)),
  ):
    verdict = score('all', 'preference', *pair)
    assert (verdict.score, verdict.correct) == expected
  verdict = score('short', 'preference', 'Three', 'three', reference='Two')
  assert verdict.score == 2.5


def test_short_answers_match_or_not():
  for criterion in CRITERIA[:5]:
    assert score('short', criterion, 'the two.', reference='Two').score == 5.0
    assert score('short', criterion, 'Three', reference='Two').score == 0.0
  assert score('short', 'answer', 'two', reference='Two').correct is True
  assert score('short', 'consistency', 'two', 'three', reference='Two').score == 0.0


def test_a_case_without_facts_is_unscored():
  case = Case(
    key='other', criterion='answer', questions=('a',), reference='b', predictions=('b',)
  )
  (verdict,) = WorldJudge(RECORDS).verdicts([case])
  assert verdict.score is None and verdict.error == 'no facts are known of other'


def test_every_reference_of_the_world_is_a_perfect_answer():
  """Also where a clip shows nothing in the phase that is asked about."""
  rng = np.random.default_rng(0)
  records, cases = {}, []
  for number in range(40):
    scene = clips.scene_of(WorldConfig(), 'test', number)
    for kind, qa in enumerate(questions.long_questions(scene, rng)):
      key = f'{number}_{kind}'
      facts = [list(fact) for fact in scene.facts()]
      span = [list(pair) for pair in qa.span]
      records[key] = {'facts': facts, 'span': span, 'phase': qa.phase}
      for criterion in CRITERIA[:6]:
        two = criterion == 'consistency'
        cases.append(
          Case(
            key=key, criterion=criterion, questions=(qa.question,) * (1 + two),
            reference=qa.answer, predictions=(qa.answer,) * (1 + two),
          )
        )  # fmt: skip
  verdicts = WorldJudge(records).verdicts(cases)
  wrong = [
    (case.criterion, case.reference, verdict.score)
    for case, verdict in zip(cases, verdicts, strict=True)
    if verdict.score != pytest.approx(5.0)
  ]
  assert not wrong
