"""What judges are asked."""

import dataclasses
import json

import pytest

from vlm_rlaif_jax.evals.judges import prompts
from vlm_rlaif_jax.evals.judges.verdict_text import read
from vlm_rlaif_jax.evals.records import Case
from vlm_rlaif_jax.settings.build import UserError


def case(criterion, prediction='one two three'):
  pairs = criterion == 'consistency'
  both = pairs or criterion == 'preference'
  return Case(
    key='q1',
    criterion=criterion,
    questions=('Who?', 'Which one?') if pairs else ('Who?',),
    reference='a "quoted"\nman',
    predictions=(prediction, 'other') if both else (prediction,),
  )


@pytest.mark.parametrize('criterion', prompts.CRITERIA)
def test_every_text_of_a_case_is_in_its_request_as_json(criterion):
  one = case(criterion)
  request = prompts.request(one)
  assert list(json.loads(request.data).values()) == list(request.texts)
  expected = {*one.questions, one.reference, *one.predictions}
  assert set(request.texts) == expected
  assert request.data in request.task and request.task in request.text
  assert request.messages[1]['content'] == request.task


@pytest.mark.parametrize('criterion', prompts.CRITERIA)
def test_no_request_holds_a_verdict(criterion):
  request = prompts.request(case(criterion))
  for text in (request.text, request.task, prompts.reminder(criterion)):
    assert read(text, criterion).score is None


def test_requests_of_two_criteria_differ():
  texts = {prompts.request(case(name)).task for name in prompts.CRITERIA}
  assert len(texts) == len(prompts.CRITERIA)


def test_a_preference_without_a_reference_does_not_show_one():
  one = dataclasses.replace(case('preference'), reference='')
  assert set(json.loads(prompts.request(one).data)) == {
    'question', 'first answer', 'second answer',
  }  # fmt: skip


def test_long_answers_are_cut_at_words():
  assert json.loads(prompts.request(case('answer'), 2).data)['predicted answer'] == (
    'one two'
  )
  assert prompts.cut_words('one  two', 2) == 'one  two', 'untouched where it fits'
  assert prompts.cut_words('one two', 0) == 'one two'


def test_the_hash_names_the_wording(monkeypatch):
  before = prompts.prompt_hash()
  assert before == prompts.prompt_hash() and len(before) == 12
  assert prompts.prompt_hash(256) != before
  monkeypatch.setattr(prompts, 'SYSTEM', 'You are kind.')
  assert prompts.prompt_hash() != before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'criterion': 'style'}, "criterion 'style'; choose one of answer"),
    ({'predictions': ()}, 'q1: criterion answer needs 1 predictions, got 0'),
    ({'questions': ('a', 'b')}, 'needs 1 questions, got 2'),
    ({'criterion': 'consistency'}, 'needs 2 questions, got 1'),
  ],
)
def test_a_case_of_the_wrong_shape_is_refused(changes, message):
  with pytest.raises(UserError) as error:
    prompts.request(dataclasses.replace(case('answer'), **changes))
  assert message in str(error.value)


def test_half_a_surrogate_pair_has_a_digest():
  assert prompts.digest('\ud83d') != prompts.digest('\ud83e')
