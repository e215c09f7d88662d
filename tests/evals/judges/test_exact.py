"""Judges that compare texts."""

import pytest

from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.judges.usage import collect
from vlm_rlaif_jax.evals.records import Case
from vlm_rlaif_jax.settings.build import UserError


def case(*predictions, criterion='answer', reference='a red hat'):
  questions = ('Which?', 'What?') if criterion == 'consistency' else ('Which?',)
  return Case(
    key='q1', criterion=criterion, questions=questions, reference=reference,
    predictions=predictions,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('prediction', 'exact', 'normalized'),
  [
    ('a red hat', True, True),
    (' a red hat\n', True, True),
    ('The Red  hat.', False, True),
    ('a red hat of wool', False, False),
    ('a red hat</s>', True, True),
    ('</s>', False, False),
    ('', False, False),
  ],
)
def test_a_match_is_right_and_five(prediction, exact, normalized):
  for judge, right in ((MatchJudge(False), exact), (MatchJudge(True), normalized)):
    (verdict,) = judge.verdicts([case(prediction)])
    assert (verdict.correct, verdict.score) == (right, 5.0 * right)


def test_both_answers_must_match_where_there_are_two():
  judge = MatchJudge()
  pairs = [('Red hat', 'a red hat'), ('Red hat', 'blue')]
  verdicts = judge.verdicts([case(*pair, criterion='consistency') for pair in pairs])
  assert [v.score for v in verdicts] == [5.0, 0.0]
  assert [v.correct for v in verdicts] == [None, None]


@pytest.mark.parametrize(
  ('predictions', 'score', 'correct'),
  [
    (('red hat', 'blue'), 5.0, True),
    (('blue', 'red hat'), 0.0, False),
    (('red hat', 'Red hat!'), 2.5, None),
    (('blue', 'green'), 2.5, None),
  ],
)
def test_the_answer_that_matches_is_preferred(predictions, score, correct):
  (verdict,) = MatchJudge().verdicts([case(*predictions, criterion='preference')])
  assert (verdict.score, verdict.correct) == (score, correct)


def test_a_preference_without_a_reference_is_unscored():
  unknown = case('red hat', 'blue', criterion='preference', reference='')
  (verdict,) = MatchJudge().verdicts([unknown])
  assert verdict.score is None and verdict.error


def test_a_case_of_the_wrong_shape_is_refused():
  with pytest.raises(UserError, match='needs 1 predictions, got 2'):
    MatchJudge().verdicts([case('a', 'b')])


def test_who_judged_is_said():
  judge = MatchJudge(normalized=False, answer_words=3)
  (verdict,) = judge.verdicts([case('a red hat of wool')])
  assert verdict.correct, 'only the first words are compared'
  record = collect(judge)
  assert (record['name'], record['prompt'], record['calls']) == ('exact', '', 0)
  assert record['version'] and record['date']
