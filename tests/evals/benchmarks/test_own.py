"""Answers about one's own files: words in common, wins, and what is shown."""

import json
import math

import numpy as np
import pytest

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import judging, predictions, summaries, tables
from vlm_rlaif_jax.evals.benchmarks import answering, own, registry
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs, Tools
from vlm_rlaif_jax.evals.questions import Question
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig

RUN = EvalRun(size='7b')
CAPTION = 'A red circle moves to the left and then stays there.'


def question(key, answer, video='v.mp4'):
  row = {'question_id': key, 'video_name': video, 'question': 'What?', 'answer': answer}
  return Question(row, Video((video,)), f'my.json row {key}')


@pytest.fixture
def items():
  parts = {
    'qa': [question('a', 'dog'), question('a', CAPTION), question('b', 'cat', 'w.mp4')],
    'describe': [question('b', CAPTION)],
  }
  return own.items_of(parts)


def test_items_are_those_of_the_tasks_with_distinct_keys(items):
  keys = [item.key for item in items]
  assert len(set(keys)) == len(keys) == 4
  kinds = [item.fields['kind'] for item in items]
  assert kinds == ['short answer', 'description', 'short answer', 'description']


@pytest.mark.parametrize(
  ('answer', 'f1', 'rouge'),
  [
    ('the red circle moves', 1.0, 1.0),
    ('circle red moves', 1.0, 2 / 3),
    ('a red square', 2 * 1 / 5, 2 * 1 / 5),
    ('red red red red', 2 * 1 / 7, 2 * 1 / 7),
    ('blue', 0, 0),
    ('', 0, 0),
  ],
)
def test_words_in_common_by_hand(answer, f1, rouge):
  assert own.token_f1(answer, 'red circle moves') == pytest.approx(f1)
  assert own.rouge_l(answer, 'red circle moves') == pytest.approx(rouge)


def test_the_longest_common_subsequence_is_that_of_brute_force(rng):
  def longest(first, second):
    if not first or not second:
      return 0
    if first[0] == second[0]:
      return 1 + longest(first[1:], second[1:])
    return max(longest(first[1:], second), longest(first, second[1:]))

  for _ in range(30):
    words = [[str(w) for w in rng.choice(list('bcde'), rng.integers(1, 8))]
             for _ in range(2)]  # fmt: skip
    expected = 2 * longest(*words) / (len(words[0]) + len(words[1]))
    assert own.rouge_l(*map(' '.join, words)) == pytest.approx(expected)


def test_a_caption_is_no_exact_match(items):
  outputs = Outputs(predictions=[('dog',), ('Blue.',), ('dog',), (CAPTION,)])
  values = own.score(items, outputs, Tools(settings=RUN))
  exact = values['exact_match']
  assert exact[0] == 1 and exact[2] == 0
  assert math.isnan(exact[1]) and math.isnan(exact[3])
  metric = summaries.metrics(own.RECORD, items, values)['exact_match']
  assert (metric['n'], metric['unscored'], metric['value']) == (2, 0, 0.5)
  assert values['token_f1'][3] == values['rouge_l'][3] == 1
  assert 'judge_score' not in values


def test_references_are_perfect_and_those_of_others_are_chance(rng):
  words = ['red', 'blue', 'green', 'gray', 'black']
  rows = [question(f'q{i}', words[i % 5], f'{i % 7}.mp4') for i in range(400)]
  items = own.items_of({'qa': rows, 'describe': []})
  references = [item.reference for item in items]
  for answers, expected in (
    (references, 1.0),
    ([references[i] for i in rng.permutation(400)], pytest.approx(0.2, abs=0.05)),
  ):
    outputs = Outputs(predictions=[(text,) for text in answers])
    values = own.score(items, outputs, Tools(settings=RUN))
    for name in ('exact_match', 'token_f1', 'rouge_l'):
      assert np.mean(values[name]) == expected, name


def test_rewards_have_a_mean_with_its_error_and_no_range(items):
  outputs = Outputs(
    predictions=[('dog',)] * 4, rewards=[1.0, 3.0, -2.0, math.nan]
  )  # fmt: skip
  values = own.score(items, outputs, Tools(settings=RUN))
  metric = summaries.metrics(own.RECORD, items, values)['reward']
  assert metric['value'] == pytest.approx(2 / 3)
  assert (metric['n'], metric['unscored']) == (3, 1)
  assert metric['low'] is metric['high'] is None
  # Two videos: of v the residuals add up to 8/3, of w they are -8/3.
  expected = math.sqrt(2 * (8 / 3) ** 2 * 2 / 1) / 3
  assert metric['standard_error'] == pytest.approx(expected)
  json.dumps(metric, allow_nan=False)
  low, high = metric['interval']
  assert low <= metric['value'] <= high


def test_only_judges_that_read_are_asked(items):
  rows = rows_of(['dog'] * 4)
  assert judging.cases_of(own.RECORD, items, rows, RUN) == []
  reader = EvalRun(size='7b', judge=JudgeConfig(kind='world'))
  cases = judging.cases_of(own.RECORD, items, rows, reader)
  assert [case.key for case in cases] == [item.key for item in items]


def rows_of(answers):
  return [{'answers': [text]} for text in answers]


def test_changes_and_examples(items):
  rows = {'sft': rows_of(['dog', 'x', 'cat', 'y']), 'rlaif': rows_of(['dog', 'z'] * 2)}
  scores = {'sft': [2.0, 3.0, 1.0, 4.0], 'rlaif': [2.0, 5.0, 0.0, None]}
  verdicts = {
    name: {'correctness': [Verdict(score) for score in each]}
    for name, each in scores.items()
  }
  entry = tables.score(
    own.RECORD, items, rows, verdicts, Tools(settings=RUN)
  ).entry  # fmt: skip
  change = entry['changes']['sft']
  assert change['changed']['change'] == 0.75
  assert entry['models']['rlaif']['judge_score']['unscored'] == 1
  examples = entry['examples']
  assert len(examples) == 3 and all(
    len(set(one['answers'].values())) == 2 for one in examples
  )
  assert np.isfinite(entry['models']['sft']['words']['value'])


def test_answers_depend_on_the_limits_of_the_tasks():
  """Which `eval.open_ended_tokens` is none of; other benchmarks have that."""
  identities = []
  for changes in ({}, {'open_ended_tokens': 9}, {'answer_tokens': 9},
                  {'describe_tokens': 9}):  # fmt: skip
    run = EvalRun(size='7b', eval=EvalConfig(**changes))
    limits = predictions.limits(run.eval, own.RECORD)
    identities.append(answering.run_identity(run, 'own', limits, {}))
    assert limits == {
      'qa': changes.get('answer_tokens', 64),
      'describe': changes.get('describe_tokens', 512),
    }
  first, same, *others = identities
  assert first == same and len({first, *others}) == 3
  assert predictions.limits(run.eval, registry.named('generic')) == 512
