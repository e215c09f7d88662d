"""What a judge is asked about stored answers."""

import pytest

from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import registry
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs, Tools
from vlm_rlaif_jax.evals.judges.cases import CRITERIA, Form, cases_of
from vlm_rlaif_jax.evals.judges.prompts import GENERATIVE
from vlm_rlaif_jax.evals.records import Item, Verdict
from vlm_rlaif_jax.settings.eval import EvalRun

ROW = {
  'key': 'q1', 'video_name': 'v', 'prompts': ['Who?'], 'reference': 'A man.',
  'answers': ['A boy.'], 'ended': [True],
}  # fmt: skip
PAIR = {
  **ROW, 'prompts': ['Who?', 'Which?'], 'answers': ['A boy.', 'A girl.'],
  'ended': [True, False],
}  # fmt: skip


def test_each_criterion_of_a_benchmark_is_a_case_of_each_row():
  rows = [ROW, {**ROW, 'key': 'q2'}]
  asked = [(case.criterion, case.key) for case in cases_of('generic', rows, Form())]
  assert asked == [
    (name, key) for name in ('correctness', 'detail', 'context') for key in ('q1', 'q2')
  ]
  (case,) = cases_of('msvd_qa', [ROW], Form())
  assert (case.questions, case.predictions) == (('Who?',), ('A boy.',))
  judged = [name for names in CRITERIA.values() for name in names]
  assert set(judged) == {'answer', *GENERATIVE}
  assert cases_of('ucf101', [ROW], Form()) == []


def test_the_forms_of_the_release():
  form = Form(
    keep_placeholder=True, keep_special_tokens=True, consistency='first_twice'
  )
  (case,) = cases_of('consistency', [PAIR], form)
  assert case.questions == ('<image>\nWho?', '<image>\nWho?')
  assert case.predictions == ('A boy.</s>', 'A girl.'), 'the second was cut'
  (case,) = cases_of('consistency', [PAIR], Form())
  assert case.questions == ('Who?', 'Which?')


def test_a_form_is_what_a_summary_says():
  settings = {'consistency': 'first_twice', 'frames': 50}
  assert Form.of(settings) == Form(consistency='first_twice')
  assert Form.of({}) == Form()


def test_a_row_of_the_wrong_shape_is_named():
  with pytest.raises(DataError, match='q1: consistency needs 2 prompts, got 1'):
    cases_of('consistency', [ROW], Form())
  with pytest.raises(DataError, match='q1: answer needs 1 prompts, got 2'):
    cases_of('tgif_qa', [PAIR], Form())


def test_every_benchmark_that_a_judge_reads_has_its_scores():
  """The table of criteria is the only one: each is a benchmark, and each is scored."""
  names = {*registry.BENCHMARKS, 'own', 'qa'}
  assert set(CRITERIA) <= names
  for name in CRITERIA.keys() & registry.BENCHMARKS.keys():
    record = registry.named(name)
    assert record.family in ('qa', 'generative')
    row = PAIR if name == 'consistency' else ROW
    item = Item(
      key='q1', video=Video(('v.mp4',)), video_name='v', prompts=tuple(row['prompts']),
      reference='A man.',
    )  # fmt: skip
    verdicts = {one: [Verdict(4.0, True)] for one in CRITERIA[name]}
    outputs = Outputs(predictions=[tuple(row['answers'])], verdicts=verdicts)
    values = record.score([item], outputs, Tools(settings=EvalRun()))
    assert [4.0] in values.values(), name
