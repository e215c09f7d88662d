"""Zero-shot QA: the published files, and what answers are worth."""

import json
import math

import numpy as np
import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import judging
from vlm_rlaif_jax.evals.benchmarks import qa, registry, sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs, Tools
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun

RUN = EvalRun(size='7b')


def locate(name):
  return Video((f'{name}.mp4',))


def write(path, content):
  path.write_text(json.dumps(content))
  return path


def read(*files, name='msvd_qa'):
  return registry.named(name).read(files, locate, RUN)


@pytest.mark.parametrize(
  ('row', 'key', 'video', 'kind'),
  [
    # MSVD-QA, MSRVTT-QA as published
    ({'id': 7, 'video_id': 1301, 'question': 'what is it?', 'answer': 'dog'},
     '7', '1301', 'what'),
    # the reference
    ({'video_name': 'c7', 'question_id': 'c7_3', 'question': 'who runs', 'answer': 'a'},
     'c7_3', 'c7', 'who'),
    # with integers as ids, and a type
    ({'video_name': 'c7', 'question_id': 3, 'question': 'is it', 'answer': 'yes',
      'type': 3}, '3', 'c7', 'yes/no'),
    # no id at all
    ({'video': 'c7.avi', 'question': '<image>\nwhy', 'answer': 'a'},
     'c7.avi_0', 'c7.avi', 'why'),
  ],
)  # fmt: skip
def test_rows_of_the_published_files(tmp_path, row, key, video, kind):
  (item,) = read(write(tmp_path / 'test_qa.json', [row]))
  assert (item.key, item.video_name, item.fields['kind']) == (key, video, kind)
  assert item.video == locate(video) and item.reference == row['answer']
  assert item.prompts == (row['question'].removeprefix('<image>\n'),)


def test_tgif_qa_is_a_table_with_tabs_by_the_name_of_one_with_commas(tmp_path):
  path = tmp_path / 'Test_frameqa_question.csv'
  header = 'gif_name\tquestion\tanswer\ttype\tkey\tvid_id\tdescription'
  path.write_text(
    f'{header}\n'
    'tumblr_a_400\twhat is red, and big ?\tball\t0\tFRAMEQA3\t25\ta ball is red .\n'
    'tumblr_b_250\thow many dogs run ?\ttwo\t1\tFRAMEQA4\t26\ttwo dogs run .\n'
  )
  items = read(path, name='tgif_qa')
  assert [(x.key, x.video_name, x.reference) for x in items] == [
    ('FRAMEQA3', 'tumblr_a_400', 'ball'),
    ('FRAMEQA4', 'tumblr_b_250', 'two'),
  ]
  assert [item.fields['kind'] for item in items] == ['object', 'number']
  assert items[0].prompts == ('what is red, and big ?',)
  found = sources.find(registry.named('tgif_qa'), tmp_path)
  assert found == (path,)
  path.write_text(f'{header}\ntumblr_a_400\twhat ?\t\t0\tFRAMEQA3\t25\ta ball\n')
  with pytest.raises(DataError, match='line 2: answer is blank'):
    read(path, name='tgif_qa')


def test_questions_and_answers_in_two_files_are_joined_by_id(tmp_path):
  questions = [
    {'question': 'Is it red?', 'question_id': f'v_{i}', 'video_name': 'v', 'type': 3}
    for i in range(3)
  ]
  answers = [{'answer': f'answer {i}', 'question_id': f'v_{i}'} for i in (2, 0, 1)]
  paths = (
    write(tmp_path / 'test_q.json', questions),
    write(tmp_path / 'test_a.json', answers),
  )
  items = read(*paths, name='activitynet_qa')
  assert [item.reference for item in items] == ['answer 0', 'answer 1', 'answer 2']
  assert {item.fields['kind'] for item in items} == {'yes/no'}
  write(paths[0], [{**row, 'answer': None} for row in questions])
  assert read(*paths, name='activitynet_qa')[0].reference == 'answer 0'
  write(paths[0], questions)
  for bad, message in (
    (answers[:2], r"test_q\.json row 1: no answer to question_id 'v_1' in .*test_a"),
    ([*answers, answers[0]], r"test_a\.json row 3: question_id 'v_2' is also that of"),
    (
      [*answers, {'answer': 'x', 'question_id': 'w'}],
      r"test_a\.json row 3: no question has question_id 'w' in",
    ),
    (
      [*answers[:2], {**answers[2], 'video_name': 'w'}],
      r"test_q\.json row 1: video_name 'v' is 'w' in .*test_a\.json row 2",
    ),
  ):
    write(paths[1], bad)
    with pytest.raises(DataError, match=message) as error:
      read(*paths, name='activitynet_qa')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'question': None}, r"row 1: missing field question; it has 'id', 'video_id'"),
    ({'answer': ' '}, 'row 1: answer is blank'),
    ({'question': '<image>\n'}, 'row 1: question is blank'),
    ({'answer': '<video>'}, 'row 1: answer is blank'),
    ({'answer': 4}, 'row 1: answer must be a text, got 4'),
    ({'video_id': 1.5}, r'row 1: video_id must be a text or an integer, got 1\.5'),
    ({'id': 0}, r"row 1: question_id '0' is also that of .* row 0"),
  ],
)
def test_a_wrong_field_is_one_line_with_its_row(tmp_path, change, message):
  row = {'id': 0, 'video_id': 1, 'question': 'what?', 'answer': 'dog'}
  path = write(tmp_path / 'test_qa.json', [row, {**row, 'id': 1, **change}])
  with pytest.raises(DataError, match=message) as error:
    read(path)
  assert '\n' not in str(error.value)


def items_of(tmp_path, answers):
  rows = [
    {'id': i, 'video_id': i, 'question': 'what?', 'answer': answer}
    for i, answer in enumerate(answers)
  ]
  return read(write(tmp_path / 'test_qa.json', rows))


def means(items, predictions, verdicts=()):
  given = {'answer': verdicts} if verdicts else {}
  outputs = Outputs(predictions=[(text,) for text in predictions], verdicts=given)
  return qa.score(items, outputs, Tools(settings=RUN))


def test_references_are_right_and_shuffled_ones_at_chance(tmp_path, rng):
  words = [str(word) for word in rng.permutation([f'w{i % 10}' for i in range(1000)])]
  items = items_of(tmp_path, words)
  for metric in ('exact_match', 'normalized_match', 'contains_answer'):
    assert np.mean(means(items, words)[metric]) == 1
    shuffled = [str(word) for word in rng.permutation(words)]
    assert np.mean(means(items, shuffled)[metric]) == pytest.approx(0.1, abs=0.03)


def test_match_by_hand(tmp_path):
  items = items_of(tmp_path, ['dog', 'dog', 'dog', 'dog'])
  values = means(items, ['dog', 'The Dog.', 'It is a dog that runs.', 'dogs'])
  assert values['exact_match'] == [1, 0, 0, 0]
  assert values['normalized_match'] == [1, 1, 0, 0]
  assert values['contains_answer'] == [1, 1, 1, 0]


def test_verdicts_become_accuracy_and_score(tmp_path):
  items = items_of(tmp_path, ['dog', 'cat', 'cow'])
  verdicts = [Verdict(5.0, True), Verdict(4.8, False), Verdict(error='no verdict')]
  values = means(items, ['dog', 'dog', 'dog'], verdicts)
  assert values['accuracy'][:2] == [1, 0] and math.isnan(values['accuracy'][2])
  assert values['score'][:2] == [5, 4.8] and math.isnan(values['score'][2])


def test_cases_are_what_the_judge_reads(tmp_path):
  items = items_of(tmp_path, ['dog'])
  record = registry.named('msvd_qa')
  rows = [{'answers': ['a dog'], 'ended': [True]}]
  (case,) = judging.cases_of(record, items, rows, RUN)
  assert (case.key, case.criterion, case.reference) == ('0', 'answer', 'dog')
  assert case.questions == ('what?',) and case.predictions == ('a dog',)
  marks = EvalConfig(keep_placeholder=True, keep_special_tokens=True)
  paper = EvalRun(size='7b', eval=marks)
  (case,) = judging.cases_of(record, items, rows, paper)
  assert case.questions == ('<image>\nwhat?',) and case.predictions == ('a dog</s>',)
