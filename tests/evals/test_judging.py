"""Verdicts of a run: by criterion and item, in files, and wins in both orders."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import judging
from vlm_rlaif_jax.evals.benchmarks import own, registry
from vlm_rlaif_jax.evals.judges import cache, names, own_model
from vlm_rlaif_jax.evals.records import Case, Item, Verdict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig
from vlm_rlaif_jax.weights import bases

RUN = EvalRun(size='7b')
TOKENIZER = tokens.load_tokenizer(bases.TINY)


class LongerIsBetter:
  """A judge that counts words, and calls none of an answer unreadable."""

  identity = types.MappingProxyType({'name': 'words/1', 'kind': 'w', 'version': '1'})

  def __init__(self):
    self.cases = []

  def verdicts(self, cases):
    self.cases += cases
    return [self.verdict(case) for case in cases]

  def verdict(self, case):
    lengths = [len(text.split()) for text in case.predictions]
    if not all(lengths):
      return Verdict(error='empty')
    if case.criterion == 'preference':
      return Verdict(2.5 + 2.5 * float(np.sign(lengths[0] - lengths[1])))
    return Verdict(float(min(lengths[0], 5)), lengths[0] > 1)


def items_of(count):
  return [
    Item(key=f'k{i}', video=Video((f'{i}.mp4',)), video_name=f'v{i}', prompts=('W?',),
         reference='A red circle that moves to the left.')
    for i in range(count)
  ]  # fmt: skip


def rows_of(*texts):
  return [{'answers': [text], 'ended': [True]} for text in texts]


def test_verdicts_by_criterion_are_in_the_order_of_items_and_on_disk(tmp_path):
  path = tmp_path / 'generic' / 'verdicts_sft_words-1.jsonl'
  benchmark, items = registry.named('generic'), items_of(3)
  rows = rows_of('a b', '', 'a b c')
  verdicts = judging.judge_answers(
    LongerIsBetter(), benchmark, items, rows, RUN, tmp_path, 'sft'
  )  # fmt: skip
  assert list(verdicts) == ['correctness', 'detail', 'context']
  for each in verdicts.values():
    assert [one.score for one in each] == [2, None, 3] and each[1].error == 'empty'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(lines) == 9 and lines[1]['key'] == 'k1' and lines[1]['score'] is None


def test_the_judge_of_the_paper_reads_marks(tmp_path):
  judge = LongerIsBetter()
  paper = EvalRun(
    size='7b', eval=EvalConfig(keep_special_tokens=True, keep_placeholder=True)
  )
  rows = [{'answers': ['a dog'], 'ended': [True]}, {'answers': ['a'], 'ended': [False]}]
  judging.judge_answers(
    judge, registry.named('msvd_qa'), items_of(2), rows, paper, tmp_path, 'sft'
  )
  assert [case.predictions for case in judge.cases] == [('a dog</s>',), ('a',)]
  assert judge.cases[0].questions == ('<image>\nW?',)


def test_what_no_judge_reads_is_not_judged(tmp_path):
  rows = rows_of('A', 'B')
  verdicts = judging.judge_answers(
    LongerIsBetter(), registry.named('video_mme'), items_of(2), rows, RUN,
    tmp_path, 'sft',
  )  # fmt: skip
  assert verdicts == {} and not list(tmp_path.iterdir())


def test_wins_are_asked_in_both_orders(tmp_path):
  reader = EvalRun(size='7b', judge=JudgeConfig(kind='world'))
  rows = {
    'sft': rows_of('a', 'a b', 'same', 'a b c'),
    'rlaif': rows_of('a b', 'a', 'same', 'a b c d'),
  }
  judge = LongerIsBetter()
  rates = judging.win_rates(judge, own.RECORD, items_of(4), rows, reader, tmp_path)
  assert set(rates) == {'sft'}
  assert rates['sft']['value'] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
  assert rates['sft']['n'] == 4 and rates['sft']['order_agreement'] == 1
  assert len([c for c in judge.cases if c.criterion == 'preference']) == 6
  assert judging.win_rates(judge, own.RECORD, items_of(4), rows, RUN, tmp_path) == {}


def test_a_model_judges_with_the_video_and_not_what_is_too_long():
  calls = []

  def log_odds(prompts, videos, options):
    calls.append((len(prompts), videos, options))
    return np.arange(1, len(prompts) + 1, dtype=np.float32)

  generator = types.SimpleNamespace(
    tokenizer=TOKENIZER, buckets=(64,), log_odds=log_odds
  )
  videos = {'k0': Video(('0.mp4',)), 'k1': Video(('1.mp4',))}
  judge = judging.DeviceJudge(generator, RUN, videos)
  cases = [
    Case(
      key=key, criterion='answer', questions=('W?',), reference='', predictions=('',)
    )
    for key in ('k0', 'k1', 'k0')
  ]
  odds = judge.log_odds(cases, ['Is it red?', 'Is it red? ' * 60, 'Is it blue?'])
  assert odds[0] == 1 and math.isnan(odds[1]) and odds[2] == 2
  yes_no = (TOKENIZER.option('Yes'), TOKENIZER.option('No'))
  assert calls == [(2, [videos['k0'], videos['k0']], yes_no)]


def test_the_reference_is_that_of_the_file_now():
  """A row may be of before it was corrected; a judge of it asks again by its cache."""
  items = items_of(1)
  row = {**rows_of('a b')[0], 'reference': 'An error.', 'prompts': ['W?']}
  (case,) = judging.cases_of(registry.named('msvd_qa'), items, [row], RUN)
  assert case.reference == items[0].reference
  prompts, config = [], JudgeConfig(kind='model')

  def log_odds(cases, texts):
    prompts.extend(texts)
    return [1.0] * len(texts)

  judge = own_model.OwnModelJudge(config, 'f1', cache.VerdictCache(None), log_odds)
  for reference in ('An error.', 'Right.', 'Right.'):
    judge.verdicts([dataclasses.replace(case, reference=reference)])
  assert len(prompts) == 2 and 'Right.' in prompts[1]


@pytest.mark.parametrize(
  ('section', 'change'),
  [
    ('data', {'frames': 10}),
    ('data', {'aspect': 'crop'}),
    ('data', {'buckets': (256, 512)}),
    ('quant', {'residency': 'nf4'}),
    ('quant', {'double': False}),
  ],
)
def test_a_model_that_sees_otherwise_is_another_judge(tmp_path, section, change):
  """Its verdicts of before are not used again, nor are they overwritten."""
  run = EvalRun(size='7b', judge=JudgeConfig(kind='model'))
  part = dataclasses.replace(getattr(run, section), **change)
  asked = []

  class Device:
    def contents(self, video):
      return 'c'

  def judge_of(settings):
    model = judging.own_model(Device(), {'base': 'f1'}, settings, {'k': Video(('v',))})
    model = dataclasses.replace(model, log_odds=log_odds)
    return judging.open_judge(settings, tmp_path, None, model)

  def log_odds(cases, texts):
    asked.extend(texts)
    return [1.0] * len(texts)

  case = Case(
    key='k', criterion='answer', questions=('W?',), reference='r', predictions=('p',)
  )
  settings = (run, run, dataclasses.replace(run, **{section: part}))
  judges = [judge_of(one) for one in settings]
  for judge, count in zip(judges, (1, 1, 2), strict=True):
    judge.verdicts([case])
    assert len(asked) == count
  first, same, other = (names.file_name(tmp_path, one.identity) for one in judges)
  assert first == same != other


def test_the_length_of_a_reply_counts_where_the_model_writes_one():
  longer = EvalRun(size='7b', eval=EvalConfig(answer_tokens=32))
  assert judging.conditions(RUN) == judging.conditions(longer)
  one, other = (
    dataclasses.replace(run, judge=JudgeConfig(kind='model', own_model_by='generation'))
    for run in (RUN, longer)
  )
  assert judging.conditions(one) != judging.conditions(other)
