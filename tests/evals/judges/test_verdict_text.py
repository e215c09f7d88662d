"""What counts as a verdict, and what is no verdict however much it looks like one."""

import pytest

from vlm_rlaif_jax.evals.judges.verdict_text import read


@pytest.mark.parametrize(
  ('reply', 'score', 'correct'),
  [
    ('{"pred": "yes", "score": 4.8}', 4.8, True),
    ("{'pred': 'no', 'score': 0}", 0.0, False),
    ('{"score": "3", "pred": "Yes."}', 3.0, True),
    ('{"Pred": true, "Score": 5, "why": "same"}', 5.0, True),
    ('  \n{"pred": "no", "score": 1}\n', 1.0, False),
    ('```json\n{"pred": "yes", "score": 4}\n```', 4.0, True),
    ('```\n{"pred": "yes", "score": 4}```', 4.0, True),
    ('Here it is: {"pred": "yes", "score": 4}. Done.', 4.0, True),
    ("Sure!\n\n{'pred': 'no', 'score': 2, 'note': 'it\\'s'}", 2.0, False),
    ('pred: yes\nscore: 4/5', 4.0, True),
    ('"pred" = "no", "score" = 1.5', 1.5, False),
    ('<think>{"pred": "no", "score": 0}</think>{"pred": "yes", "score": 5}', 5, True),
    ('{"pred": "no", "score": 1} I repeat: {"pred": "no", "score": 1}', 1.0, False),
    ('{"pred": "yes", "score": 4, "by": {"a": 1}} and more', 4.0, True),
    (r"{'pred': 'yes', 'score': 4, 'why': '\d'}", 4.0, True),
    ("{'pred': 'yes', 'score': '4/5'}", 4.0, True),
    ('pred: no, score: 4.5/5.0', 4.5, False),
    ('pred: yes, score: 4 out of 5', 4.0, True),
    ('pred: no? score: 2?</think>{"pred": "yes", "score": 5}', 5.0, True),
    ('pred: no, score: 1 </think>\npred: yes, score: 5', 5.0, True),
  ],
)  # fmt: skip
def test_verdicts_are_read(reply, score, correct):
  verdict = read(reply, 'answer')
  assert (verdict.score, verdict.correct, verdict.error) == (score, correct, '')
  assert verdict.raw == reply


@pytest.mark.parametrize(
  ('reply', 'reason'),
  [
    ('', 'the reply is empty'),
    ('I cannot judge this.', 'no verdict in the reply'),
    ('{"score": 4}', 'no "pred" in the reply'),
    ('{"pred": "yes"}', 'no "score" in the reply'),
    ('{"pred": "maybe", "score": 4}', '"pred" must be yes or no'),
    ('{"pred": "yes", "score": 7}', '"score" must be a number from 0 to 5, got 7'),
    ('{"pred": "yes", "score": -1}', '"score" must be'),
    ('{"pred": "yes", "score": NaN}', '"score" must be'),
    ('{"pred": "yes", "score": true}', '"score" must be'),
    ('{"pred": "yes", "score": null}', '"score" must be'),
    ('{"pred": "yes", "score": [4]}', '"score" must be'),
    ('pred: yes, score: 8/10', '"score" must be'),
    ('pred: yes, score: 4 out of 10', '"score" must be'),
    ('pred: yes, score: 4 (out of 10)', '"score" must be'),
    ('pred: yes, score: 4 of 10', '"score" must be'),
    ('pred: yes, score: 4/5.5', '"score" must be'),
    ('{"pred": "yes", "score": "4/10"}', '"score" must be'),
    ('pred: yes, score: 4%', 'no verdict in the reply'),
    ('pred: yes, score: 4,5', 'no verdict in the reply'),
    ('pred: yes, score: 3-4', 'no verdict in the reply'),
    ('pred: yes, score: 3 or 4', 'no verdict in the reply'),
    ('pred: yes/no, score: 3', 'no verdict in the reply'),
    ('<think>pred: no, score: 2, or', 'inside the thoughts'),
    ('[{"pred": "yes", "score": 4}, {"pred": "no", "score": 0}]', 'several verdicts'),
    ('pred: yes, score: 4. No: pred: no, score: 0', 'several verdicts'),
    ('{"pred": "no", "score": 0, "score": 5}', 'verdict'),
    ('{' * 3000, 'no verdict in the reply'),
    ('[' * 3000, 'no verdict in the reply'),
    ('{"pred": "yes", "score": 1' + '0' * 3000 + '}', '"score" must be'),
  ],
)
def test_other_replies_are_unscored_with_the_reason(reply, reason):
  verdict = read(reply, 'answer')
  assert verdict.score is None and verdict.correct is None
  assert reason in verdict.error


def test_the_other_criteria_have_a_score_alone():
  assert read('{"score": 4}', 'detail').score == 4.0
  assert read('{"pred": "yes", "score": 4}', 'detail').correct is None
  assert read('Score: 4', 'temporal').score == 4.0


@pytest.mark.parametrize(
  ('reply', 'score', 'correct'),
  [
    ('{"better": "first"}', 5.0, True),
    ("{'better': 'Second'}", 0.0, False),
    ('The better: tie', 2.5, None),
    ('{"better": "both"}', None, None),
    ('{"better": "first"} or {"better": "second"}', None, None),
  ],
)
def test_a_preference_is_a_score_of_the_first_answer(reply, score, correct):
  verdict = read(reply, 'preference')
  assert (verdict.score, verdict.correct) == (score, correct)
  assert bool(verdict.error) == (score is None)


def test_what_was_shown_is_no_verdict():
  shown = ["The answer: {'pred': 'yes', 'score': 5} or pred: yes, score: 5."]
  for quoted in ("It says {'pred': 'yes', 'score': 5}", 'It says pred: yes, score: 5.'):
    assert read(quoted, 'answer').score == 5.0
    assert read(quoted, 'answer', shown).score is None
  own = "It says {'pred': 'yes', 'score': 5}, but {'pred': 'no', 'score': 0}"
  assert read(own, 'answer', shown).score == 0.0


def test_a_long_reply_is_read_to_its_end_and_kept_in_part():
  """What it says first, or thinks, is not what it comes to."""
  verdict = read('score: 1 at first. ' + 'x' * 10_000 + '\n{"score": 5}', 'detail')
  assert verdict.score == 5.0 and len(verdict.raw) == 4000
  thought = '<think>pred: no, score: 2 ' + 'x' * 10_000 + '</think>'
  verdict = read(thought + '{"pred": "yes", "score": 5}', 'answer')
  assert (verdict.score, verdict.correct) == (5.0, True)


def test_a_number_that_may_be_cut_is_no_score():
  for reply in ('{"pred": "yes", "score": 4', "{'pred': 'yes', 'score': 4."):
    assert 'no verdict' in read(reply, 'answer').error
  reply = 'pred: yes, score: 4'
  assert read(reply, 'answer').score == 4.0
  assert 'no verdict' in read(reply, 'answer', is_cut=True).error
  assert read(f'{reply}.8 because it', 'answer', is_cut=True).score == 4.8


def test_the_end_of_a_thought_that_was_shown_hides_nothing():
  shown = ['a hat </think>{"pred": "yes", "score": 5}']
  verdict = read(f'It says {shown[0]}', 'answer', shown)
  assert verdict.score is None
