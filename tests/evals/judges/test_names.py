"""Two judges of one name do not write over each other's files."""

import json

import pytest

from tests.evals.judges import stored_run
from vlm_rlaif_jax.evals.judges import cache, endpoint, names, rejudge
from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig

URL = 'http://localhost:8000/v1'


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('gpt-4o-mini', 'gpt-4o-mini'), ('a/b:c', 'a-b-c'), ('..', 'judge'), ('é', 'judge')],
)
def test_names_of_judges_are_safe(name, expected):
  assert names.safe_name(name) == expected


def judge(**changes):
  config = JudgeConfig(
    **{'kind': 'endpoint', 'base_url': URL, 'model': 'org/judge', **changes}
  )
  return endpoint.EndpointJudge(config, cache.VerdictCache(None), {})


@pytest.mark.parametrize(
  'change',
  [{'base_url': 'http://other:8000/v1'}, {'temperature': -1.0}, {'answer_words': 20},
   {'rounding': 'truncate'}, {'reply_tokens': 16}],
)  # fmt: skip
def test_another_judge_of_the_same_name_has_another_file(tmp_path, change):
  first, second = (judge(**c).identity for c in ({}, change))
  assert names.file_name(tmp_path, first) == 'org-judge'
  other = names.file_name(tmp_path, second)
  assert other.startswith('org-judge-') and len(other) == len('org-judge-') + 6
  for identity, name in ((first, 'org-judge'), (second, other)) * 2:
    assert names.file_name(tmp_path, identity) == name
  known = names.read(tmp_path)
  assert list(known) == ['org-judge', other]
  (field,) = change
  assert known['org-judge'][field] != known[other][field]


def test_the_version_that_an_endpoint_reports_makes_no_other_judge(tmp_path):
  one = judge()
  assert names.file_name(tmp_path, one.identity) == 'org-judge'
  one.usage.note('judge-2024-01-02', '')
  assert one.identity['version'] == 'judge-2024-01-02'
  assert names.file_name(tmp_path, one.identity) == 'org-judge'
  own = {'name': 'model-sft', 'kind': 'model', 'version': 'weights a'}
  assert names.file_name(tmp_path, own) == 'model-sft'
  assert names.file_name(tmp_path, {**own, 'version': 'weights b'}) != 'model-sft'


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
  names.file_name(tmp_path, judge().identity)
  path = tmp_path / names.REGISTRY
  path.write_text(path.read_text() + '{"file": "org-ju')
  other = judge(temperature=-1.0).identity
  name = names.file_name(tmp_path, other)
  assert names.file_name(tmp_path, other) == name
  assert list(names.read(tmp_path)) == ['org-judge', name]


def test_a_folder_of_before_keeps_its_names(tmp_path):
  folder = stored_run.write(tmp_path) / 'eval'
  (folder / 'msvd_qa' / 'verdicts_sft_org-judge.jsonl').write_text('')
  former = {k: v for k, v in judge().identity.items() if k != 'reply_tokens'}
  summary = {'benchmarks': {'msvd_qa': {'judge': former}}}
  (folder / 'summary_org-judge.json').write_text(json.dumps(summary))
  assert names.file_name(folder, judge(temperature=-1.0).identity) != 'org-judge'
  assert names.file_name(folder, judge().identity) == 'org-judge'


class Stern(MatchJudge):
  """A judge with the name of another, and other verdicts."""

  identity = {**MatchJudge().identity, 'answer_words': '1'}  # noqa: RUF012

  def verdicts(self, cases):
    return [Verdict(0.0, False) for _ in cases]


def test_the_verdicts_of_both_stay_and_can_be_compared(tmp_path):
  folder = stored_run.write(tmp_path) / 'eval'
  stored = rejudge.read_stored(folder, ['msvd_qa'])
  rejudge.rejudge(folder, stored, MatchJudge(), preference=True)
  rejudge.rejudge(folder, stored, Stern(), preference=True)
  first, second = names.read(folder)
  result = rejudge.compare(folder, stored, first, second)
  (criterion,) = result['benchmarks']['msvd_qa']['criteria'].values()
  assert criterion['means'][0] > 0 == criterion['means'][1]
  for name in (first, second):
    assert (folder / f'summary_{name}.json').is_file()
    assert (folder / 'msvd_qa' / f'wins_sft_{name}.jsonl').is_file()


class Unreachable(MatchJudge):
  """A judge that cannot be asked."""

  def verdicts(self, cases):
    raise UserError('cannot be reached')


def test_a_judge_that_gives_no_verdicts_takes_no_name(tmp_path):
  folder = stored_run.write(tmp_path) / 'eval'
  stored = rejudge.read_stored(folder, ['msvd_qa'])
  with pytest.raises(UserError):
    rejudge.rejudge(folder, stored, Unreachable())
  assert names.read(folder) == {} and not list(folder.glob('summary_*'))
