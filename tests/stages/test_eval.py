"""Which models an evaluation may compare, and what it leaves of public benchmarks."""

import dataclasses
import json
import pathlib
import signal

import numpy as np
import pytest
from PIL import Image

from tests.core.test_hosts import spawn
from tests.public_benchmarks import (
  answered,
  families_run,
  judged_run,
  public_data,
  public_run,
)
from tests.rl.learner import run_of
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.stages import eval as stage
from vlm_rlaif_jax.train.run_context import RunContext
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


ANSWERS = 'tiny/eval/msvd_qa/answers_base.jsonl'


@pytest.mark.pipeline
def test_two_hosts_give_the_numbers_of_one(tmp_path):
  public_data(tmp_path)
  program = pathlib.Path(__file__).with_name('eval_program.py')
  done = spawn(2, tmp_path / '2', str(tmp_path), devices=2, program=program)
  for _, errors, status in done:
    assert status == 0, errors[-3000:]
  one = stage.run(families_run(tmp_path), tmp_path / '1')
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
  assert {'msrvtt_retrieval', 'ucf101', 'generative'} <= one['benchmarks'].keys()
  assert json.loads(json.dumps(one['benchmarks'])) == both['benchmarks']


@pytest.mark.slow
def test_kill_9_while_generating_and_while_judging_changes_no_number(tmp_path):
  """Each run is a process; it is killed after the third answer, then the third verdict,
  and the third run goes on to the end."""
  public_data(tmp_path)
  program = pathlib.Path(__file__).with_name('eval_program.py')
  ((_, errors, status),) = spawn(
    1, tmp_path, str(tmp_path), 'killed', devices=1, program=program
  )
  assert status == 0, errors[-3000:]
  report = json.loads((tmp_path / 'report.json').read_text())
  for part in ('answers', 'verdicts'):
    assert report[part]['signal'] == signal.SIGKILL and not report[part]['is_done']
    assert 3 <= report[part]['rows'] < 8
  assert report['killed'] == report['whole'] == 0
  folder, whole = (tmp_path / name / 'tiny' / 'eval' for name in ('killed', 'whole'))

  # What was there was neither generated nor judged again, and nothing is otherwise.
  entries = []
  for place in (folder, whole):
    entry = json.loads((place / 'summary.json').read_text())['benchmarks']['msvd_qa']
    assert entry['items'] == 8 and entry['judge'].pop('date')
    entries.append(entry)
  counts = [
    {name: entry['judge'].pop(name) for name in ('calls', 'cached')}
    for entry in entries
  ]
  assert sum(counts[0].values()) == sum(counts[1].values())
  assert counts[0]['cached'] >= 3 > counts[1]['cached'] == 0
  assert entries[0] == entries[1]
  for name in ('answers_base', 'verdicts_base_model-base'):
    files = [place / 'msvd_qa' / f'{name}.jsonl' for place in (folder, whole)]
    assert files[0].read_text() == files[1].read_text()
  answers = (folder / 'msvd_qa' / 'answers_base.jsonl').read_text()
  left = report['answers']['left'].rpartition('\n')[0]
  assert answers.startswith(left)
  verdicts = (folder / 'verdict_cache.jsonl').read_text()
  assert verdicts.startswith(report['verdicts']['left'].rpartition('\n')[0])


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
def test_a_replaced_video_is_answered_and_judged_again_and_no_other_is(
  tmp_path, monkeypatch
):
  public_data(tmp_path)
  settings = judged_run(tmp_path)
  settings = dataclasses.replace(
    settings, eval=dataclasses.replace(settings.eval, batch=8)
  )
  stage.run(settings, tmp_path / 'run')
  asked, append = [], AnswerFile.append

  def counting(self, item, *values):
    asked.append(item.key)
    append(self, item, *values)

  monkeypatch.setattr(AnswerFile, 'append', counting)
  # As many bytes of another picture, under the names that the annotations have
  for path in (tmp_path / 'frames' / 'v_clip1').iterdir():
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(path)
  replaced = stage.run(settings, tmp_path / 'run')['benchmarks']['msvd_qa']
  assert sorted(asked) == ['10', '11']
  assert replaced['judge']['calls'] == 2
  fresh = stage.run(settings, tmp_path / 'fresh')['benchmarks']['msvd_qa']
  assert replaced['models'] == fresh['models']
  files = [
    {row.pop('key'): row for row in answered(tmp_path / name)[ANSWERS]}
    for name in ('run', 'fresh')
  ]
  assert files[0] == files[1]

  # Nothing changed, and it starts anew all the same
  asked.clear()
  restart = dataclasses.replace(settings.checkpoint, on_change='restart')
  stage.run(dataclasses.replace(settings, checkpoint=restart), tmp_path / 'run')
  assert len(asked) == 8


def test_a_prompt_that_is_too_long_is_one_line_before_any_work(tmp_path):
  public_data(tmp_path)
  path = tmp_path / 'eval' / 'msvd_qa.json'
  rows = json.loads(path.read_text())
  rows[3]['question'] = 'Is it red? ' * 40
  path.write_text(json.dumps(rows))
  with pytest.raises(DataError, match=r'msvd_qa\.json row 3: \d+ tokens do not fit'):
    stage.run(public_run(tmp_path), tmp_path / 'run')


def test_fewer_samples_to_learn_from_are_no_fewer_questions(tmp_path, capsys):
  """Runs that learn from more and from less have to be compared on the same ones."""
  public_data(tmp_path)
  counts = []
  for limit in (0, 1):
    settings = public_run(tmp_path)
    data = dataclasses.replace(settings.data, max_samples=limit)
    settings = dataclasses.replace(settings, data=data)
    run = RunContext(settings, tmp_path / 'run')
    evaluation = stage.Evaluation(settings, run)
    counts.append([len(one.items) for one in evaluation.benchmarks])
    text = 'all questions are asked; for fewer, --config.eval.clips'
    assert (text in capsys.readouterr().out) == bool(limit)
  assert counts[0] == counts[1] and max(counts[0]) > 1


def test_an_evaluation_without_any_of_its_videos_says_where_it_looked(tmp_path):
  public_data(tmp_path)
  settings = public_run(tmp_path)
  other = dataclasses.replace(settings.eval, videos='videos/{name}.*')
  with pytest.raises(DataError, match=r"no item of split test .*'videos/\{name\}\.\*'"):
    stage.run(dataclasses.replace(settings, eval=other), tmp_path / 'run')
