"""A model of the run as judge, with functions in place of the model."""

import math

import numpy as np
import pytest

from vlm_rlaif_jax.evals.judges.cache import VerdictCache
from vlm_rlaif_jax.evals.judges.own_model import OwnModelJudge
from vlm_rlaif_jax.evals.judges.usage import collect
from vlm_rlaif_jax.evals.records import Case
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig


def case(key='q1', prediction='a hat', criterion='answer', other='a cat'):
  two = criterion == 'consistency'
  both = two or criterion == 'preference'
  return Case(
    key=key, criterion=criterion, questions=('Who?', 'What?') if two else ('Who?',),
    reference='an umbrella', predictions=(prediction, other) if both else (prediction,),
  )  # fmt: skip


class Model:
  """Odds that depend on what stands in a prompt; keeps what it was asked."""

  def __init__(self):
    self.prompts: list[str] = []

  def log_odds(self, cases, prompts):
    assert len(cases) == len(prompts)
    self.prompts += prompts
    return np.asarray([2.0 if 'a hat' in prompt else -1.0 for prompt in prompts])

  def generate(self, cases, prompts):
    self.prompts += prompts
    return ['{"pred": "yes", "score": 4}' if 'a hat' in p else '' for p in prompts]


def judge(model, path=None, fingerprint='f1', **changes):
  config = JudgeConfig(kind='model', **changes)
  cache = VerdictCache(path)
  return OwnModelJudge(config, fingerprint, cache, model.log_odds, model.generate)


def test_the_score_is_the_probability_of_yes():
  verdicts = judge(Model()).verdicts([case(), case(prediction='a cat')])
  sigmoid = [1 / (1 + math.exp(-odds)) for odds in (2.0, -1.0)]
  assert [v.score for v in verdicts] == pytest.approx([5 * p for p in sigmoid])
  assert [v.correct for v in verdicts] == [True, False]


@pytest.mark.parametrize('prompt', ['judge_answer', 'tiny_judge_answer'])
def test_a_prompt_holds_the_case_and_every_criterion_has_its_own(prompt):
  model = Model()
  one = judge(model, own_model_prompt=prompt)
  one.verdicts([case(criterion=c) for c in ('answer', 'detail', 'consistency')])
  for text in model.prompts:
    assert all(word in text for word in ('Who?', 'an umbrella', 'a hat'))
    assert '{' not in text
  if prompt == 'judge_answer':
    assert len(set(model.prompts)) == 3
  assert 'What?' in model.prompts[2] and 'a cat' in model.prompts[2]


def test_a_preference_is_the_difference_of_both_answers():
  model = Model()
  pairs = [('a hat', 'a cat'), ('a cat', 'a hat'), ('a cat', 'a dog')]
  cases = [case(prediction=a, other=b, criterion='preference') for a, b in pairs]
  verdicts = judge(model).verdicts(cases)
  assert [v.correct for v in verdicts] == [True, False, None]
  expected = [5 / (1 + math.exp(-margin)) for margin in (3.0, -3.0, 0.0)]
  assert [v.score for v in verdicts] == pytest.approx(expected)
  assert len(model.prompts) == 6


def test_a_prompt_that_is_too_long_is_unscored():
  model = Model()
  model.log_odds = lambda cases, prompts: [math.nan, 800.0]
  verdicts = judge(model).verdicts([case(), case('q2')])
  assert verdicts[0].score is None and 'too long' in verdicts[0].error
  assert verdicts[1].score == 5.0, 'and large odds do not overflow'


def test_what_it_writes_is_read_as_that_of_an_endpoint():
  model = Model()
  one = judge(model, own_model_by='generation', rounding='truncate')
  verdicts = one.verdicts([case(), case(prediction='a cat')])
  assert [v.score for v in verdicts] == [4.0, None]
  assert 'JSON object' in model.prompts[0]
  assert collect(one)['malformed'] == 1


def test_a_rerun_costs_nothing_but_another_model_does(tmp_path):
  path, model = tmp_path / 'cache.jsonl', Model()
  first = judge(model, path).verdicts([case(), case('q2')])
  again = judge(model, path)
  assert again.verdicts([case(), case('q2')]) == first
  assert len(model.prompts) == 2 and collect(again)['cached'] == 2
  judge(model, path, fingerprint='f2').verdicts([case()])
  assert len(model.prompts) == 3


def test_a_verdict_is_on_the_video_as_it_is(tmp_path):
  """One that was replaced is judged again; so is one of another benchmark whose item
  has the same key, question and answer."""
  path, config = tmp_path / 'cache.jsonl', JudgeConfig(kind='model')

  def asked(contents):
    model = Model()
    one = OwnModelJudge(
      config, 'f1', VerdictCache(path), model.log_odds, None, lambda case: contents
    )
    one.verdicts([case()])
    return len(model.prompts)

  assert [asked(contents) for contents in ('a', 'a', 'b', 'a', '')] == [1, 0, 1, 0, 1]


def test_who_judged_is_said():
  record = collect(judge(Model(), own_model_prompt='tiny_judge_answer'))
  other = collect(judge(Model()))
  assert (record['name'], record['version']) == ('model-sft', 'f1')
  assert record['by'] == 'logprobs'
  assert record['prompt'] != other['prompt']


def test_a_function_that_is_missing_is_one_line():
  with pytest.raises(UserError, match='own_model_by=generation'):
    OwnModelJudge(
      JudgeConfig(kind='model', own_model_by='generation'),
      'f', VerdictCache(None), Model().log_odds,
    )  # fmt: skip
