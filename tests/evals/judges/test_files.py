"""Answers and verdicts on disk."""

import json

import pytest

from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.evals.judges import files
from vlm_rlaif_jax.evals.records import Case, Verdict

ROW = {
  'key': 'q1', 'video_name': 'v', 'prompts': ['Who?'], 'reference': 'A man.',
  'answers': ['A boy.'],
}  # fmt: skip
FORMER = {
  'question_id': 'q1', 'video_name': 'v', 'question': 'Who?', 'answer': 'A man.',
  'prediction': 'A boy.',
}  # fmt: skip


def write(path, *rows, end='\n'):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(json.dumps(row) for row in rows) + end)
  return path


def test_answers_are_found_by_benchmark_and_model(tmp_path):
  write(tmp_path / 'eval' / 'msvd_qa' / 'answers_sft.jsonl', ROW)
  write(tmp_path / 'eval' / 'qa_rlaif.jsonl', FORMER)
  write(tmp_path / 'eval' / 'msvd_qa' / 'answers_sft.former.jsonl', ROW)
  folder = files.folder_of(tmp_path)
  assert folder == tmp_path / 'eval' == files.folder_of(folder)
  assert {k: list(v) for k, v in files.answer_files(folder).items()} == {
    'msvd_qa': ['sft'], 'qa': ['rlaif'],
  }  # fmt: skip


def test_a_folder_without_answers_says_where_they_come_from(tmp_path):
  with pytest.raises(DataError, match='no answers of an evaluation') as error:
    files.folder_of(tmp_path)
  assert 'configs/eval.py' in str(error.value) and '\n' not in str(error.value)


def test_rows_of_both_forms_are_read_and_a_cut_line_is_left_out(tmp_path):
  path = write(tmp_path / 'a.jsonl', ROW, end='\n{"key": "q2", "vid')
  assert files.read_answers(path) == [ROW]
  (row,) = files.read_answers(write(tmp_path / 'qa_sft.jsonl', FORMER))
  assert {name: row[name] for name in ROW} == ROW


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([{**ROW, 'key': 5}], 'line 1: key must be a text, got 5'),
    ([{**ROW, 'answers': 'A boy.'}], 'line 1: answers must be a list of texts'),
    ([ROW, {**ROW, 'answers': [None]}], 'line 2: answers must be a list of texts'),
    ([ROW, ROW], "line 2: key 'q1' is also that of"),
    ([FORMER | {'question': None}], 'line 1: prompts must be a list of texts'),
  ],
)
def test_a_wrong_field_is_named(tmp_path, rows, message):
  with pytest.raises(DataError) as error:
    files.read_answers(write(tmp_path / 'answers_sft.jsonl', *rows))
  assert message in str(error.value)


def test_verdicts_come_back_as_they_were_written(tmp_path):
  cases = [
    Case(key=key, criterion=name, questions=(), reference='', predictions=())
    for key, name in (('a', 'answer'), ('a', 'detail'), ('b', 'answer'))
  ]
  verdicts = [Verdict(4.8, True, 'x'), Verdict(3.0), Verdict(raw='?', error='why')]
  path = files.verdicts_path(tmp_path, 'generic', 'sft', 'org-judge-7b')
  assert path.name == 'verdicts_sft_org-judge-7b.jsonl'
  files.write_verdicts(path, cases, verdicts)
  assert list(files.read_verdicts(path).values()) == verdicts
  assert list(files.read_verdicts(path)) == [(c.key, c.criterion) for c in cases]
  assert files.judges_of(tmp_path) == ['org-judge-7b']
  assert [p.name for p in path.parent.iterdir()] == [path.name], 'no part is left'


def test_a_verdict_says_which_answer_it_is_on(tmp_path):
  rows = [{'key': key, 'answers': [f'{key}.']} for key in 'ab']
  cases = [
    Case(key=key, criterion='answer', questions=(), reference='', predictions=())
    for key in 'ab'
  ]
  there = files.digests(rows)
  assert there['a'] == files.digest(['a.']) != there['b']
  assert files.digest_of_all(there) == files.digest_of_all(
    dict(reversed(there.items()))
  )
  path = files.verdicts_path(tmp_path, 'generic', 'sft', 'x')
  files.write_verdicts(path, cases, [Verdict(4.0), Verdict(3.0)], there)
  assert len(files.read_verdicts(path)) == 2
  there['b'] = files.digest(['another'])
  assert list(files.read_verdicts(path, there)) == [('a', 'answer')]
  assert not files.read_verdicts(path, {})
  files.write_verdicts(path, cases, [Verdict(4.0), Verdict(3.0)])  # of before
  assert len(files.read_verdicts(path, there)) == 2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'score': 9}, 'score must be 0 to 5 or null, got 9'),
    ({'score': 'high'}, 'score must be'),
    ({'score': True}, 'score must be'),
    ({'correct': 1}, 'correct must be true, false or null, got 1'),
    ({'key': None}, 'key and criterion must be texts'),
    ({'error': 4}, 'raw and error must be texts'),
  ],
)
def test_a_wrong_verdict_is_named(tmp_path, change, message):
  row = {'key': 'a', 'criterion': 'answer', 'score': 4, 'correct': True, **change}
  with pytest.raises(DataError) as error:
    files.read_verdicts(write(tmp_path / 'verdicts_sft_x.jsonl', row))
  assert message in str(error.value) and 'line 1' in str(error.value)


def test_a_verdict_by_hand_needs_no_more_than_its_score(tmp_path):
  rows = [
    {'key': 'a', 'criterion': 'detail', 'score': 4},
    {'key': 'b', 'criterion': 'detail', 'score': None},
  ]
  read = files.read_verdicts(write(tmp_path / 'verdicts_sft_x.jsonl', *rows))
  assert read['a', 'detail'] == Verdict(4.0)
  assert read['b', 'detail'].error
  with pytest.raises(DataError, match='a second verdict on a'):
    files.read_verdicts(write(tmp_path / 'verdicts_sft_y.jsonl', rows[0], rows[0]))
