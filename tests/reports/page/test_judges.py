"""What the files of judges say is on the page, with their numbers."""

import html
import json
import re

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.reports.page import judges, run_files


@pytest.fixture
def folder(tmp_path):
  return run_fixture.run(tmp_path / 'a' / 'tiny')


def tables(*folders):
  """By heading, the rows of the table below it, as lists of texts."""
  runs = run_files.find(list(folders))
  parts = ''.join(map(str, judges.build(runs)))
  found = {}
  for title, table in re.findall(r'<h3>(.*?)</h3>.*?<tbody>(.*?)</tbody>', parts, re.S):
    rows = re.findall(r'<tr>(.*?)</tr>', table, re.S)
    cells = [re.findall(r'<t[dh].*?>(.*?)</t[dh]>', row, re.S) for row in rows]
    strip = lambda cell: html.unescape(re.sub('<.*?>', '', cell))
    found[html.unescape(title)] = [[strip(cell) for cell in row] for row in cells]
  assert [run.problems for run in runs] == [[]] * len(runs)
  return parts, found


def test_agreement_conclusions_order_and_audit_have_the_numbers_of_their_files(folder):
  parts, found = tables(folder)
  assert found['Agreement by criterion'] == [
    ['msvd_qa', 'answer', 'exact, other', '4', '0, 0', '75.0', '0.4321', '0.55', '0.66',
     '2.50, 4.50'],
  ]  # fmt: skip
  assert found['Whether the conclusion depends on the judge'] == [
    ['msvd_qa, SFT → RLAIF', 'exact, other', '+25.0 [10.0, 40.0] up',
     '+15.0 [-10.0, 30.0] undecided', '-10.0 [-20.0, 5.0]', 'depends on the judge'],
  ]  # fmt: skip
  # k0 is won in both orders; of k1 the first place is chosen twice: a tie. Equal
  # answers were not judged.
  assert found['What the order of two answers is worth'] == [
    ['msvd_qa', 'SFT', 'other', '2', '1', '1', '0', '50.0', '75.0'],
  ]
  assert found['What judges say of known answers'] == [
    ['other v-2', 'answer', '4.97', '7', '0.25', '6', '96.0', '0.91', '1'],
  ]
  assert found['Who judged'] == [['other', 'endpoint', '', 'h:80/v1', '', '']]
  assert 'exact msvd_qa: 25.0 [10.0, 40.0]' in parts  # what the drawing says


def test_runs_side_by_side_have_their_names(folder, tmp_path):
  other = run_fixture.run(tmp_path / 'b' / 'tiny', seed=7)
  _, found = tables(folder, other)
  rows = found['Agreement by criterion']
  assert len(rows) == 2 and rows[0][1] != rows[1][1]


@pytest.mark.parametrize(
  ('file', 'content'),
  [('agreement_exact_other.json', '{"judges": 1}'), ('audit_other.json', '[1'),
   ('judges.jsonl', 'x\n')],
)  # fmt: skip
def test_a_broken_file_leaves_out_its_part_alone(folder, file, content):
  (folder / 'eval' / file).write_text(content)
  runs = run_files.find([folder])
  parts = ''.join(map(str, judges.build(runs)))
  assert 'Two judges on the same answers' in parts
  broken = [] if file == 'judges.jsonl' else [file.partition('_')[0]]
  for name in broken:
    assert len(runs[0].problems) >= 1, name
  assert all('\n' not in line for line in runs[0].problems)


def test_summaries_of_the_same_judge_are_not_printed_twice(folder):
  """Those of others are: the numbers of a rejudge beside those of the run."""
  from vlm_rlaif_jax.reports.page import benchmarks

  summary = json.loads((folder / 'eval' / 'summary.json').read_text())
  entry = summary['benchmarks']['msvd_qa']
  for name in ('exact', 'other'):
    judge = {'name': name, 'version': '2', 'date': '2026-02-03'}
    one = {'benchmarks': {'msvd_qa': {**entry, 'judge': judge}}}
    (folder / 'eval' / f'summary_{name}.json').write_text(json.dumps(one))
  (run,) = run_files.find([folder])
  others = benchmarks._of_other_judges(run, 'msvd_qa')
  assert [one['judge']['name'] for one in others] == ['other']


def test_scores_of_a_rejudge_are_no_shares(folder):
  """Its entries do not say which metrics are scores; 0.8 of 5 was 80 %."""
  from vlm_rlaif_jax.reports.page import benchmarks

  number = {'value': 0.8, 'interval': [0.7, 0.9], 'n': 9, 'unscored': 0}
  change = {'change': 0.1, 'interval': [0.0, 0.2], 'n': 9}
  one = {
    'items': 9,
    'judge': {'name': 'third'},
    'models': {'sft': {'accuracy': number, 'detail': number}},
    'changes': {'sft': {'accuracy': change, 'detail': change}},
  }
  path = folder / 'eval' / 'summary_third.json'
  path.write_text(json.dumps({'benchmarks': {'msvd_qa': one}}))
  (run,) = run_files.find([folder])
  (entry,) = benchmarks._of_other_judges(run, 'msvd_qa')
  text = re.sub('<.*?>', '', str(benchmarks._benchmark('msvd_qa', entry)))
  assert '80.0 [70.0, 90.0]0.80 [0.70, 0.90]' in text
  assert '+10.0 [0.0, 20.0]+0.10 [0.00, 0.20]' in text and '9 rows scored' in text


def test_a_model_without_a_score_leaves_shares_of_others_in_percent():
  from vlm_rlaif_jax.reports.page import benchmarks

  numbers = {'base': {'value': None}, 'sft': {'value': 0.5, 'interval': [0.4, 0.6]}}
  one = {'models': {name: {'accuracy': cell} for name, cell in numbers.items()}}
  text = str(benchmarks._metrics_table('x', one, ['base', 'sft'], ['accuracy']))
  assert 'accuracy, %' in text and '50.0' in text


def test_two_answers_are_compared_by_one_judge(folder):
  """Verdicts of another judge on one of them say nothing of the other."""
  from vlm_rlaif_jax.reports.page import answers

  (run,) = run_files.find([folder])
  grades = [one.grades for one in answers.read(run, None) if one.benchmark == 'msvd_qa']
  rows = [{'key': f'k{n}', 'criterion': 'answer', 'score': 1} for n in range(9)]
  place = folder / 'eval' / 'msvd_qa'
  run_fixture.lines(place / 'verdicts_rlaif_a-first.jsonl', rows)
  after = answers.read(run, None)
  assert grades == [one.grades for one in after if one.benchmark == 'msvd_qa']
  for path in place.glob('verdicts_sft_*'):
    path.unlink()
  items = [one for one in answers.read(run, None) if one.benchmark == 'msvd_qa']
  words = {one.grades['rlaif'].text for one in items}
  assert items and words <= {'exact match', 'no exact match'}
