"""How right stored answers are, as the evaluation counts them."""

import json

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.evals.judges import files
from vlm_rlaif_jax.reports.page import (
  answers,
  benchmarks,
  judges,
  run_files,
  verdicts,
)

CAPTION = 'A man in a red shirt cooks pasta in a small kitchen.'


@pytest.mark.parametrize(
  'benchmark, reference, is_right',
  [
    ('own', 'a dog', True),
    ('own', CAPTION, None),  # no description equals another
    ('generic', CAPTION, None),
    ('consistency', CAPTION, None),
    ('msvd_retrieval', CAPTION, None),
    ('ucf101', 'apply eye makeup', None),
    ('describe', CAPTION, None),
    ('qa', CAPTION, False),
    ('msvd_qa', 'cat', False),
    ('msvd_qa', 'dog', True),
  ],
)
def test_words_decide_where_the_evaluation_counts_words(benchmark, reference, is_right):
  grade = answers._grade(
    benchmark, 'k', {'reference': reference}, 'The dog.', None, None
  )
  assert grade.correct is is_right
  assert (grade.quality is None) == (is_right is None)


def test_an_option_that_ties_with_the_right_one_is_chosen():
  row = {'reference': 'A', 'options': [-1.0, -1.0, -2.0]}
  tie = answers._grade('mvbench', 'k', row, 'A', None, None)
  assert not tie.correct and tie.text == 'likeliest option: A and B'
  row['options'] = [-1.0, -1.5, -2.0]
  assert answers._grade('mvbench', 'k', row, 'B', None, None).correct


@pytest.fixture
def folder(tmp_path):
  return run_fixture.run(tmp_path / 'a' / 'tiny')


def items_of(folder):
  (run,) = run_files.find([folder])
  return [one for one in answers.read(run, None) if one.benchmark == 'msvd_qa']


def test_an_answer_without_a_verdict_is_neither_right_nor_wrong(folder):
  """It was compared by its words: the judge that failed once had 'broken' an answer."""
  path = folder / 'eval' / 'msvd_qa' / 'verdicts_rlaif_exact.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows[0] |= {'score': None, 'correct': None, 'error': 'no number in the reply'}
  run_fixture.lines(path, rows)
  for name in ('sft', 'rlaif'):
    path.with_name(f'verdicts_{name}_other.jsonl').unlink()
  first, second = items_of(folder)
  assert first.grades['sft'].correct is True
  assert first.grades['rlaif'].correct is first.grades['rlaif'].quality is None
  assert first.grades['rlaif'].text == 'no verdict of the judge'
  assert first.outcome == 'same answer' and second.outcome == 'wrong in both'


def test_of_several_judges_that_of_the_summary_decides(folder):
  """Not the first by name, whose verdicts may be of a former evaluation."""
  assert [one.grades['rlaif'].correct for one in items_of(folder)] == [True, False]
  path = folder / 'eval' / 'summary.json'
  summary = json.loads(path.read_text())
  judge = {'name': 'other', 'kind': 'endpoint', 'base_url': 'h:80/v1', 'date': 'today'}
  summary['benchmarks']['msvd_qa']['judge'] = judge
  path.write_text(json.dumps(summary))
  assert [one.grades['rlaif'].correct for one in items_of(folder)] == [True, True]


def test_verdicts_on_former_answers_are_left_out(folder):
  """They were those of the answers that the run has now, by the other judge."""
  place = folder / 'eval' / 'msvd_qa'
  for name in ('sft', 'rlaif'):
    there = files.digests(files.read_answers(place / f'answers_{name}.jsonl'))
    there['k1'] = files.digest(['a former answer'])
    path = place / f'verdicts_{name}_other.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    run_fixture.lines(path, [{**row, 'answers': there[row['key']]} for row in rows])
  path = place / 'wins_sft_other.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  digests = [there['k0'], there['k0']]
  run_fixture.lines(path, [{**row, 'answers': digests} for row in rows])
  (run,) = run_files.find([folder])
  assert verdicts.margins(run) == {'exact': [0, 0], 'other': [0]}
  pairs = list(verdicts.judge_pairs(run))
  assert {row[2]: row[4] for row in pairs} == {'base': 2, 'rlaif': 1, 'sft': 1}
  (order,) = verdicts.orders(run)
  assert order[4] == 1
  lines = [line for line in run.problems if 'on former answers' in line]
  assert len(lines) == 3 and '1 of 2 verdicts' in lines[0]


def test_numbers_on_former_answers_are_left_out(folder):
  path = folder / 'eval' / 'summary.json'
  summary = json.loads(path.read_text())
  entry = summary['benchmarks']['msvd_qa']
  former = {**entry, 'judge': {'name': 'other'}, 'answers': {'sft': 'a', 'rlaif': 'b'}}
  path.with_name('summary_other.json').write_text(
    json.dumps({'benchmarks': {'msvd_qa': former}})
  )
  agreement = json.loads((path.parent / 'agreement_exact_other.json').read_text())
  agreement['benchmarks']['msvd_qa']['answers'] = former['answers']
  run_fixture.dump(path.parent / 'agreement_exact_other.json', agreement)
  for now, count in (('b', 1), ('c', 0)):
    summary['benchmarks']['msvd_qa']['answers'] = {'sft': 'a', 'rlaif': now}
    path.write_text(json.dumps(summary))
    (run,) = run_files.find([folder])
    assert len(benchmarks._of_other_judges(run, 'msvd_qa')) == count
    assert len(list(judges._criteria(run))) == count
    assert len(run.problems) == (0 if count else 2)
