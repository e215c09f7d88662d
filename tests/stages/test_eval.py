"""Which models an evaluation may compare, and what it leaves of public benchmarks."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests.core.test_hosts import spawn
from tests.public_benchmarks import public_data, public_run
from tests.rl.learner import run_of
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig
from vlm_rlaif_jax.stages import eval as stage
from vlm_rlaif_jax.weights import artifacts


def test_ppo_is_compared_with_the_policy_that_it_started_from(tmp_path):
  settings = EvalRun(size='7b')
  run = run_of(settings, tmp_path)
  for name, info in (('init', {'fingerprint': 'new'}), ('ppo', {'init': 'new'})):
    folder = tmp_path / '7b' / name / 'artifact'
    folder.mkdir(parents=True)
    (folder / 'artifact.json').write_text(json.dumps(info))
  stage.check_control(settings, run)
  (folder / 'artifact.json').write_text(json.dumps({'init': 'old'}))
  with pytest.raises(artifacts.ArtifactError, match='started from old: their differ'):
    stage.check_control(settings, run)
  without = EvalRun(size='7b', eval=EvalConfig(models=('sft', 'rlaif')))
  stage.check_control(without, run)


# ------------------------------------------------------------------ public benchmarks


def answered(folder):
  """By file, the rows that an evaluation left."""
  return {
    str(path.relative_to(folder)): [
      json.loads(x) for x in path.read_text().split('\n')[:-1]
    ]
    for path in sorted(folder.rglob('*.jsonl'))
  }


@pytest.mark.pipeline
def test_two_hosts_give_the_numbers_of_one(tmp_path):
  public_data(tmp_path)
  program = pathlib.Path(__file__).with_name('eval_program.py')
  done = spawn(2, tmp_path / '2', str(tmp_path), devices=2, program=program)
  for _, errors, status in done:
    assert status == 0, errors[-3000:]
  one = stage.run(public_run(tmp_path), tmp_path / '1')
  path = tmp_path / '2' / 'tiny' / 'eval' / 'summary.json'
  both = json.loads(path.read_text())
  options = [
    [row.pop('options') for row in rows]
    for rows in (
      answered(tmp_path / str(count))['tiny/eval/video_mme/answers_base.jsonl']
      for count in (1, 2)
    )
  ]
  np.testing.assert_allclose(*options, rtol=1e-4)
  assert json.loads(json.dumps(one['benchmarks'])) == both['benchmarks']


class _KilledError(Exception):
  """In place of a signal."""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, monkeypatch):
  public_data(tmp_path)
  settings = public_run(tmp_path)
  whole = stage.run(settings, tmp_path / 'whole')
  entry = whole['benchmarks']['msvd_qa']
  assert (entry['items'], entry['of'], entry['missing']) == (8, 10, ['clip4'])
  assert 'v_clip4' in entry['missing_reasons'][0]
  accuracy = entry['models']['base']['accuracy']
  assert accuracy['n'] == 8 and accuracy['unscored'] == 0
  assert entry['judge']['name'] == 'normalized' and entry['judge']['date']
  mean = whole['benchmarks']['generative']
  assert mean['items'] == 12 and 0 <= mean['models']['base']['mean']['value'] <= 5
  choices = answered(tmp_path / 'whole')['tiny/eval/video_mme/answers_base.jsonl']
  for row in choices:  # log-probabilities of two of many tokens
    assert len(row['options']) == 2 and np.exp(row['options']).sum() < 1

  # Killed in the middle of a benchmark, and of a line.
  append, calls = AnswerFile.append, []

  def failing(self, *values):
    if len(calls) == 13:
      raise _KilledError
    append(self, *values)
    calls.append(self.path)

  monkeypatch.setattr(AnswerFile, 'append', failing)
  with pytest.raises(_KilledError):
    stage.run(settings, tmp_path / 'killed')
  monkeypatch.setattr(AnswerFile, 'append', append)
  folder = tmp_path / 'killed' / 'tiny' / 'eval'
  path = calls[-1]
  path.write_bytes(path.read_bytes()[:-7])
  calls.clear()

  def counting(self, *values):
    calls.append(self.path)
    append(self, *values)

  monkeypatch.setattr(AnswerFile, 'append', counting)
  resumed = stage.run(settings, tmp_path / 'killed')
  assert len(calls) == 24 - 12
  assert resumed['benchmarks'] == whole['benchmarks']
  assert answered(folder) == answered(tmp_path / 'whole' / 'tiny' / 'eval')


@pytest.mark.slow
def test_a_file_of_ones_own_is_judged_by_a_model_of_the_run(tmp_path):
  public_data(tmp_path)
  rows = [
    {
      'id': f'{video}{number}',
      'images': [f'frames/v_clip{video}/{frame}.png' for frame in range(2)],
      'conversations': [
        {'from': 'human', 'value': '<image>\nWhat is it?'},
        {'from': 'gpt', 'value': answer},
      ],
    }
    for video in range(4)
    for number, answer in enumerate(('Red', 'A red circle moves and then it stays.'))
  ]
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  public = public_run(tmp_path)
  settings = dataclasses.replace(
    public,
    data=dataclasses.replace(public.data, train='my.json', holdout=0.2),
    eval=dataclasses.replace(public.eval, benchmarks=()),
    judge=JudgeConfig(kind='model', model='base', own_model_prompt='tiny_judge_answer'),
  )
  summary = stage.run(settings, tmp_path / 'run')
  assert list(summary['benchmarks']) == ['own']
  entry = summary['benchmarks']['own']
  assert entry['items'] == summary['questions']['qa'] == 6  # of three of four videos
  numbers = entry['models']['base']
  assert numbers['exact_match']['n'] == 3  # captions are descriptions
  assert numbers['judge_score']['n'] == 6 and entry['judge']['name'] == 'model-base'
  assert len(entry['examples']) == 3
  folder = tmp_path / 'run' / 'tiny' / 'eval'
  left = answered(folder)
  own, qa = left['own/answers_base.jsonl'], left['qa/answers_base.jsonl']
  assert [row['answers'] for row in own] == [row['answers'] for row in qa]
  assert len(left['own/verdicts_base_model-base.jsonl']) == 6


def test_a_prompt_that_is_too_long_is_one_line_before_any_work(tmp_path):
  public_data(tmp_path)
  path = tmp_path / 'eval' / 'msvd_qa.json'
  rows = json.loads(path.read_text())
  rows[3]['question'] = 'Is it red? ' * 40
  path.write_text(json.dumps(rows))
  with pytest.raises(DataError, match=r'msvd_qa\.json row 3: \d+ tokens do not fit'):
    stage.run(public_run(tmp_path), tmp_path / 'run')


def test_an_evaluation_without_any_of_its_videos_says_where_it_looked(tmp_path):
  public_data(tmp_path)
  settings = public_run(tmp_path)
  other = dataclasses.replace(settings.eval, videos='videos/{name}.*')
  with pytest.raises(DataError, match=r"no item of split test .*'videos/\{name\}\.\*'"):
    stage.run(dataclasses.replace(settings, eval=other), tmp_path / 'run')
