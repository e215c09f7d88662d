"""The five criteria: files of Video-ChatGPT, cases, and their mean."""

import dataclasses
import json
import math

import numpy as np
import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import judging, summaries, tables
from vlm_rlaif_jax.evals.benchmarks import generative, registry
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs, Tools
from vlm_rlaif_jax.evals.judges.cases import GENERATIVE
from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun

RUN = EvalRun(size='7b')
ROW = {'video_name': 'v_1', 'Q': 'What happens?', 'A': 'A man sings.'}
PAIR = {'video_name': 'v_1', 'Q1': 'What happens?', 'Q2': 'What is on?', 'A': 'A man.'}


def read(tmp_path, name, rows):
  path = tmp_path / f'{name}_qa.json'
  path.write_text(json.dumps(rows))
  return registry.named(name).read((path,), lambda n: Video((n,)), RUN)


def test_files_have_no_ids_and_videos_repeat(tmp_path):
  items = read(tmp_path, 'generic', [ROW, ROW, {**ROW, 'video_name': 'v_2'}])
  assert [item.key for item in items] == ['v_1_0', 'v_1_1', 'v_2_2']
  assert items[0].prompts == ('What happens?',) and items[0].reference == 'A man sings.'
  with pytest.raises(DataError, match=r'consistency_qa\.json row 0: missing field Q1;'):
    read(tmp_path, 'consistency', [ROW])
  with pytest.raises(DataError, match=r"row 1: missing field A; it has 'video_name'"):
    read(tmp_path, 'temporal', [ROW, {'video_name': 'v', 'Q': 'W?'}])


def test_consistency_in_both_forms(tmp_path):
  items = read(tmp_path, 'consistency', [PAIR])
  rows = [{'answers': ['He sings.', 'Singing.'], 'ended': [True, True]}]
  record = registry.named('consistency')
  (case,) = judging.cases_of(record, items, rows, RUN)
  assert case.questions == ('What happens?', 'What is on?')
  twice = EvalRun(size='7b', eval=EvalConfig(consistency='first_twice'))
  (case,) = judging.cases_of(record, items, rows, twice)
  assert case.questions == ('What happens?', 'What happens?')
  assert case.predictions == ('He sings.', 'Singing.')


def test_criteria_and_their_means_by_hand(tmp_path):
  items = read(tmp_path, 'generic', [ROW, ROW])
  rows = [{'answers': [text], 'ended': [True]} for text in ('a b', 'c')]
  cases = judging.cases_of(registry.named('generic'), items, rows, RUN)
  assert [(case.key, case.criterion) for case in cases] == [
    (item.key, criterion)
    for criterion in ('correctness', 'detail', 'context')
    for item in items
  ]
  verdicts = {
    'correctness': [Verdict(4.0), Verdict(2.0)],
    'detail': [Verdict(5.0), Verdict(error='none')],
  }
  outputs = Outputs(predictions=[('a b',), ('c',)], verdicts=verdicts)
  values = generative.score(items, outputs, Tools(settings=RUN), name='generic')
  assert values['correctness'] == [4, 2] and values['words'] == [2, 1]
  assert values['detail'][0] == 5 and math.isnan(values['detail'][1])
  metrics = summaries.metrics(registry.named('generic'), items, values)
  detail = metrics['detail']
  assert (detail['value'], detail['n'], detail['unscored']) == (5, 1, 1)
  assert (detail['low'], detail['high']) == (2.5, 5)
  assert 'context' not in metrics


def scored(tmp_path, scores):
  """Every benchmark of the family, with scores by criterion."""
  parts = {}
  for name, criteria in GENERATIVE.items():
    count = len(scores[criteria[0]])
    row = PAIR if name == 'consistency' else ROW
    rows = [{**row, 'video_name': f'v_{i % 3}'} for i in range(count)]
    items = read(tmp_path, name, rows)
    verdicts = {
      one: [Verdict(None if math.isnan(x) else x) for x in scores[one]]
      for one in criteria
    }
    answers = [{'answers': ['x'] * len(item.prompts)} for item in items]
    parts[name] = tables.score(
      registry.named(name), items, {'sft': answers}, {'sft': verdicts},
      Tools(settings=RUN),
    )  # fmt: skip
    parts[name].entry.update({'of': count, 'judge': None})
  return parts


def test_the_mean_of_five_counts_each_criterion_once(tmp_path):
  scores = {
    'correctness': [4.0, 2, 3, 3, 1, 5], 'detail': [3.0] * 6, 'context': [2.0] * 6,
    'temporal': [1.0, 2], 'consistency': [5.0, 4, 3],
  }  # fmt: skip
  mean = tables.mean_of_five(scored(tmp_path, scores))
  expected = np.mean([np.mean(values) for values in scores.values()])
  entry = mean['models']['sft']['mean']
  assert entry['value'] == pytest.approx(expected) and entry['n'] == 23
  assert entry['interval'][0] < expected < entry['interval'][1]
  scores['temporal'][1] = math.nan
  entry = tables.mean_of_five(scored(tmp_path, scores))['models']['sft']['mean']
  assert entry['value'] == pytest.approx(np.mean([3, 3, 2, 1, 4]))
  assert entry['low'] == pytest.approx(np.mean([3, 3, 2, 0.5, 4]))
  assert entry['high'] == pytest.approx(np.mean([3, 3, 2, 3, 4]))


def test_a_criterion_without_a_score_is_no_zero_and_no_change(tmp_path):
  """Four criteria at 3 and one that nobody could score are no mean of 2.4."""
  scores = {one: [3.0] * 3 for criteria in GENERATIVE.values() for one in criteria}
  known = scored(tmp_path, scores)
  assert tables.mean_of_five(known)['models']['sft']['mean']['value'] == 3
  assert (
    tables.mean_of_five(scored(tmp_path, {**scores, 'temporal': [math.nan] * 3}))
    is None
  )
  # Scored of both, but of no item in common: no change can be stated.
  halves = ([math.nan, 4.0, 4.0], [3.0, math.nan, math.nan])
  before, after = (scored(tmp_path, {**scores, 'temporal': half}) for half in halves)
  both = {
    name: dataclasses.replace(
      part,
      values={'sft': part.values['sft'], 'rlaif': after[name].values['sft']},
      entry={**part.entry, 'models': {
        'sft': part.entry['models']['sft'],
        'rlaif': after[name].entry['models']['sft'],
      }},
    )
    for name, part in before.items()
  }  # fmt: skip
  mean = tables.mean_of_five(both)
  assert set(mean['models']) == {'sft', 'rlaif'} and mean['changes'] == {}


def test_the_change_of_the_mean_of_five_is_bounded_by_its_scores(tmp_path):
  scores = {one: [3.0] * 3 for criteria in GENERATIVE.values() for one in criteria}
  parts = {
    name: dataclasses.replace(
      part,
      values={model: part.values['sft'] for model in ('sft', 'rlaif')},
      entry={**part.entry, 'models': {
        model: part.entry['models']['sft'] for model in ('sft', 'rlaif')
      }},
    )
    for name, part in scored(tmp_path, scores).items()
  }  # fmt: skip
  mean = tables.mean_of_five(parts)
  share = 1.96**2 / (3 + 1.96**2)
  change = mean['changes']['sft']['mean']
  assert (change['change'], change['n']) == (0, 15)
  assert change['interval'] == pytest.approx((-5 * share, 5 * share))
  assert mean['models']['sft']['mean']['interval'] == pytest.approx(
    (3 - 3 * share, 3 + 2 * share)
  )


def test_references_give_five_and_those_of_others_nothing(tmp_path):
  """By a judge that compares texts: every criterion, and their mean."""
  texts = [f'A man does {word}.' for word in ('this', 'that', 'much', 'nothing')]
  parts: dict[str, dict] = {'references': {}, 'shuffled': {}}
  for name in GENERATIVE:
    questions = {'Q': 'W?'} if name != 'consistency' else {'Q1': 'W?', 'Q2': 'V?'}
    rows = [
      {'video_name': f'v{i}', 'A': text, **questions} for i, text in enumerate(texts)
    ]
    record, items = registry.named(name), read(tmp_path, name, rows)
    for kind, answers in (('references', texts), ('shuffled', texts[1:] + texts[:1])):
      stored = [
        {'answers': [text] * record.prompts, 'ended': [True] * record.prompts}
        for text in answers
      ]
      cases = judging.cases_of(record, items, stored, RUN)
      verdicts = judging.by_criterion(items, cases, MatchJudge().verdicts(cases))
      assert set(verdicts) == set(GENERATIVE[name])
      parts[kind][name] = tables.score(
        record, items, {'sft': stored}, {'sft': verdicts}, Tools(settings=RUN)
      )
  for kind, scored_parts in parts.items():
    for one in scored_parts.values():
      one.entry.update(of=4, judge=None)
    mean = tables.mean_of_five(scored_parts)['models']['sft']['mean']
    assert mean['value'] == {'references': 5.0, 'shuffled': 0.0}[kind]
    assert mean['low'] == mean['high'] == mean['value'] and mean['unscored'] == 0
