"""Stored answers are judged again, without a model."""

import json

import pytest

from tests.evals.judges import stored_run
from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.evals.judges import files, rejudge
from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.judges.world import WorldJudge
from vlm_rlaif_jax.reports import judgments
from vlm_rlaif_jax.settings.build import UserError


@pytest.fixture
def folder(tmp_path):
  return stored_run.write(tmp_path) / 'eval'


def world_judge(folder):
  return WorldJudge(rejudge.find_records(folder))


def test_numbers_are_those_of_the_answers(folder):
  stored = rejudge.read_stored(folder)
  summary = rejudge.rejudge(folder, stored, MatchJudge())
  entry = summary['benchmarks']['msvd_qa']
  accuracy = {name: one['accuracy']['value'] for name, one in entry['models'].items()}
  assert accuracy == pytest.approx({'sft': 4 / 12, 'rlaif': 8 / 12})
  change = entry['changes']['sft']['accuracy']
  assert change['change'] == pytest.approx(4 / 12) and change['n'] == 12
  assert (entry['items'], entry['videos']) == (12, 6)
  written = json.loads(files.summary_path(folder, 'normalized').read_text())
  assert written == json.loads(json.dumps(summary))
  judge = written['benchmarks']['msvd_qa']['judge']
  assert judge['name'] == 'normalized' and judge['version'] and judge['date']


def test_the_world_judges_long_answers_by_their_claims(folder):
  stored = rejudge.read_stored(folder, ['generic'])
  entry = rejudge.rejudge(folder, stored, world_judge(folder))['benchmarks']['generic']
  values = {
    model: {name: one['value'] for name, one in metrics.items()}
    for model, metrics in entry['models'].items()
  }
  assert values['rlaif'] == {'correctness': 5.0, 'detail': 5.0, 'context': 5.0}
  assert values['sft'] == {'correctness': 5.0, 'detail': 2.5, 'context': 5.0}


def test_a_second_benchmark_does_not_drop_the_first(folder):
  for name in ('generic', 'msvd_qa'):
    stored = rejudge.read_stored(folder, [name])
    summary = rejudge.rejudge(folder, stored, world_judge(folder))
  assert set(summary['benchmarks']) == {'generic', 'msvd_qa'}


def test_models_and_benchmarks_are_chosen_by_name(folder):
  stored = rejudge.read_stored(folder, ['msvd_qa'], ['rlaif'])
  assert {name: list(models) for name, models in stored.items()} == {
    'msvd_qa': ['rlaif']
  }
  (folder / 'ucf101').mkdir()
  (folder / 'ucf101' / 'answers_sft.jsonl').write_text('')
  assert set(rejudge.read_stored(folder)) == {'generic', 'msvd_qa'}
  for name, message in (
    ('ucf101', 'no judge reads its answers'),
    ('tgif_qa', 'no answers to it'),
  ):
    with pytest.raises(DataError, match=message):
      rejudge.read_stored(folder, [name])
  with pytest.raises(DataError, match=r'--models=base: .*choose some of rlaif, sft'):
    rejudge.read_stored(folder, models=['base'])
  for path in folder.glob('*/answers_sft.jsonl'):
    if path.parent.name == 'generic':
      path.unlink()
  with pytest.raises(DataError, match='no answers to judge'):
    rejudge.read_stored(folder, ['generic'], ['sft'])


def test_facts_are_those_of_the_run(folder, tmp_path):
  assert len(rejudge.find_records(folder)) == 24
  other = tmp_path / 'world-5678'
  other.mkdir()
  (other / 'truth.json').write_text('{}')
  with pytest.raises(UserError, match='or name one with --truth='):
    rejudge.find_records(folder)
  assert rejudge.find_records(folder, str(other / 'truth.json')) == {}
  lineage = {'lineage': {'data.root': str(other)}}
  (folder / 'summary.json').write_text(json.dumps(lineage))
  assert rejudge.find_records(folder) == {}
  with pytest.raises(DataError, match='no such file'):
    rejudge.find_records(folder, 'missing.json')


def test_the_form_of_the_run_is_kept(folder):
  assert not rejudge.form_of(folder, 'msvd_qa').keep_placeholder
  both = ('msvd_qa', 'generic')
  assert rejudge.without_form(folder, both) == list(both)  # killed before its summary
  settings = {'keep_placeholder': True, 'frames': 50}
  summary = {'benchmarks': {'msvd_qa': {'settings': settings}}}
  (folder / 'summary.json').write_text(json.dumps(summary))
  assert rejudge.form_of(folder, 'msvd_qa').keep_placeholder
  assert rejudge.without_form(folder, both) == ['generic']


def test_two_judges_are_compared(folder):
  stored = rejudge.read_stored(folder)
  with pytest.raises(DataError, match='there are verdicts of nobody'):
    rejudge.compare(folder, stored, 'normalized', 'world')
  for judge in (MatchJudge(), world_judge(folder)):
    rejudge.rejudge(folder, stored, judge)
  result = rejudge.compare(folder, stored, 'normalized', 'world')
  short = result['benchmarks']['msvd_qa']['criteria']['answer']
  assert (short['n'], short['kappa'], short['equal']) == (24, 1.0, 1.0)
  long = result['benchmarks']['generic']
  assert long['criteria']['detail']['means'] == [2.5, 3.75]
  detail = long['conclusions']['sft']['detail']
  assert [one['change'] for one in detail['changes']] == [5.0, 2.5]
  assert detail['difference'] == -2.5
  # That all of six videos gained half of the scale leaves room for no gain in others.
  directions = [one['direction'] for one in detail['changes']]
  assert directions == ['up', 'undecided'] and not detail['same']
  text = '\n'.join(judgments.agreement_table(result))
  assert 'agreement of normalized and world' in text
  assert 'msvd_qa answer' in text and 'the same by both' in text


def test_verdicts_on_former_answers_are_not_compared(folder):
  """Of a model that was trained anew, and a judge that was not asked again."""
  stored = rejudge.read_stored(folder, ['msvd_qa'])
  rejudge.rejudge(folder, stored, MatchJudge(), preference=True)
  path = folder / 'msvd_qa' / 'answers_rlaif.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows = [{**row, 'answers': [row['reference']]} for row in rows]
  files.write_rows(path, rows)
  stored = rejudge.read_stored(folder, ['msvd_qa'])
  exact = rejudge.rejudge(folder, stored, MatchJudge(normalized=False))
  result = rejudge.compare(folder, stored, 'normalized', 'exact')
  entry = result['benchmarks']['msvd_qa']
  answer = entry['criteria']['answer']
  assert (answer['n'], answer['equal']) == (12, 1.0)  # those of SFT
  assert entry['former'] == 12
  lines = judgments.agreement_table(result)
  assert any('12 verdicts on former answers are left out' in line for line in lines)
  was, now = (
    json.loads(files.summary_path(folder, name).read_text())['benchmarks']['msvd_qa']
    for name in ('normalized', 'exact')
  )
  assert entry['answers'] == {'sft': now['answers']['sft']}
  assert was['answers']['sft'] == now['answers']['sft']
  assert was['answers']['rlaif'] != now['answers']['rlaif']
  assert exact['benchmarks']['msvd_qa']['answers'] == now['answers']


def test_an_audit_tells_a_judge_that_knows_from_one_that_does_not(folder):
  stored = rejudge.read_stored(folder, ['msvd_qa'])
  rows = [dict(row) for row in stored['msvd_qa']['sft']]
  for number, row in enumerate(rows):
    row['reference'] = ('yes', 'no', 'red', 'two')[number % 4]
  stored = {'msvd_qa': {'sft': rows}}
  result = rejudge.audited(folder, stored, MatchJudge(), MatchJudge())
  answer = result['criteria']['answer']
  assert answer['reference'] == {'score': 5.0, 'right': 1.0, 'n': 12, 'unscored': 0}
  assert answer['shuffled'] == {'score': 0.0, 'right': 0.0, 'n': 12, 'unscored': 0}
  assert answer['self_agreement']['equal'] == 1.0
  assert 'judge normalized' in judgments.audit_table(result)[0]

  class Generous(MatchJudge):
    def _verdict(self, case):
      return super()._verdict(case.__class__(**{**vars(case), 'reference': ''}))

  generous = rejudge.audited(folder, stored, Generous(), MatchJudge())
  assert generous['criteria']['answer']['reference']['score'] == 0.0
  assert generous['criteria']['answer']['self_agreement']['equal'] < 1.0


def test_a_table_says_who_judged_and_what_is_unscored(folder):
  class Shy(MatchJudge):
    def verdicts(self, cases):
      given = super().verdicts(cases)
      return [given[0].__class__(error='no verdict'), *given[1:]]

  stored = rejudge.read_stored(folder, ['msvd_qa'])
  entry = rejudge.rejudge(folder, stored, Shy())['benchmarks']['msvd_qa']
  lines = judgments.table('msvd_qa', entry)
  text = '\n'.join(lines)
  assert lines[0] == 'msvd_qa: 12 items about 6 videos, 2 verdicts unscored'
  assert 'judge normalized, version' in lines[1]
  assert 'sft accuracy: 1 of 12 unscored; over all, 25.0% to 33.3%' in text
  assert 'accuracy, change sft -> rlaif: +36.4% [' in text and 'n=11' in text


def test_the_better_model_is_judged_in_both_orders(folder):
  stored = rejudge.read_stored(folder)
  summary = rejudge.rejudge(folder, stored, world_judge(folder), preference=True)
  short = summary['benchmarks']['msvd_qa']['wins']['sft']
  long = summary['benchmarks']['generic']['wins']['sft']
  assert (short['wins'], short['ties'], short['losses']) == (4, 8, 0)
  assert (long['wins'], long['value'], long['order_agreement']) == (12, 1.0, 1.0)
  rows = (folder / 'msvd_qa' / 'wins_sft_world.jsonl').read_text().splitlines()
  assert len(rows) == 24
  text = '\n'.join(judgments.table('generic', summary['benchmarks']['generic']))
  assert 'rlaif against sft: wins 100.0%' in text and '12 wins, 0 ties' in text


def test_a_run_of_before_is_judged_by_its_old_names(tmp_path):
  """Of 0.1.0: answers beside one another, a summary without benchmarks."""
  folder = tmp_path / 'eval'
  folder.mkdir()
  for model, right in (('sft', 1), ('rlaif', 3)):
    rows = [
      {'video_name': f'v{i}', 'question_id': f'q{i}', 'question': 'Who?',
       'answer': 'A man.', 'kind': 'object', 'prediction': 'A man' if i < right else ''}
      for i in range(4)
    ]  # fmt: skip
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'qa_{model}.jsonl').write_text(lines)
  (folder / 'summary.json').write_text(json.dumps({'stage': 'eval', 'sft': {}}))
  stored = rejudge.read_stored(files.folder_of(tmp_path))
  entry = rejudge.rejudge(folder, stored, MatchJudge())['benchmarks']['qa']
  values = {name: one['accuracy']['value'] for name, one in entry['models'].items()}
  assert values == {'sft': 0.25, 'rlaif': 0.75}
  assert entry['changes']['sft']['accuracy']['change'] == 0.5


def test_numbers_of_the_judge_before_are_kept(folder):
  """Where stage eval is run again with another judge."""
  former = {'name': 'org/judge', 'kind': 'endpoint', 'temperature': '0'}
  entries = {'msvd_qa': {'judge': former, 'models': {'sft': {}}},
             'ucf101': {'judge': None, 'models': {}}}  # fmt: skip
  (folder / 'summary.json').write_text(json.dumps({'benchmarks': entries}))
  rejudge.keep_former(folder, former)
  assert not list(folder.glob('summary_*.json'))
  for _ in range(2):  # once for each benchmark that is judged
    rejudge.keep_former(folder, {'name': 'model-sft', 'kind': 'model'})
  (path,) = folder.glob('summary_*.json')
  kept = json.loads(path.read_text())
  assert path.name == 'summary_org-judge.json' and kept['judge'] == former
  assert kept['benchmarks'] == {'msvd_qa': entries['msvd_qa']}
