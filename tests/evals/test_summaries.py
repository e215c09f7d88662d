"""Means, intervals and changes against a direct bootstrap."""

import math

import numpy as np
import pytest

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import statistics, summaries
from vlm_rlaif_jax.evals.benchmarks import registry
from vlm_rlaif_jax.evals.records import Item

QA = registry.named('msvd_qa')


def items_of(videos, kinds):
  return [
    Item(
      key=str(i), video=Video((f'{video}.mp4',)), video_name=video, prompts=('W?',),
      fields={'kind': kind},
    )
    for i, (video, kind) in enumerate(zip(videos, kinds, strict=True))
  ]  # fmt: skip


def bootstrap(values, videos, draws=4000):
  """Draws whole videos with replacement and pools their values, the slow way."""
  rng = np.random.default_rng(1)
  names = sorted(set(videos))
  groups = {n: [v for v, w in zip(values, videos, strict=True) if w == n]
            for n in names}  # fmt: skip
  means = []
  for _ in range(draws):
    chosen = rng.choice(len(names), len(names))
    means.append(np.mean([v for i in chosen for v in groups[names[i]]]))
  return np.quantile(means, [0.025, 0.975])


def test_an_interval_is_that_of_a_direct_bootstrap_over_videos(rng):
  videos = [f'v{i // 5}' for i in range(200)]
  level = rng.uniform(1, 5, 40)
  scores = [float(level[i // 5] + rng.normal(0, 0.3)) for i in range(200)]
  number = statistics.metric(scores, videos, 5.0)
  assert number['value'] == pytest.approx(np.mean(scores))
  expected = bootstrap(scores, videos)
  assert number['interval'] == pytest.approx(expected, abs=0.05)
  # Answers about one video are alike, so it is wider than that of 200 single ones.
  single = statistics.metric(scores, [str(i) for i in range(200)], 5.0)['interval']
  assert np.ptp(number['interval']) > 1.5 * np.ptp(single)


def test_a_change_is_paired_item_by_item(rng):
  videos = [f'v{i // 4}' for i in range(160)]
  before = rng.integers(0, 6, 160).astype(float)
  after = np.clip(before + rng.integers(0, 2, 160), 0, 5)
  after[3] = math.nan
  items = items_of(videos, ['what'] * 160)
  values = {'sft': {'score': before.tolist()}, 'rlaif': {'score': after.tolist()}}
  texts = {'sft': [('a',)] * 160, 'rlaif': [('b',)] * 40 + [('a',)] * 120}
  change = summaries.changes(QA, items, values, texts)['sft']
  both = ~np.isnan(after)
  step = (after - before)[both]
  assert change['score']['n'] == 159
  assert change['score']['change'] == pytest.approx(step.mean())
  expected = bootstrap(
    step.tolist(), [v for v, b in zip(videos, both, strict=True) if b]
  )
  assert change['score']['interval'] == pytest.approx(expected, abs=0.05)
  assert change['changed']['change'] == 0.25


def test_init_is_a_control_beside_sft():
  items = items_of(['v', 'w'], ['what'] * 2)
  values = {name: {'accuracy': [0.0, 1.0]} for name in ('base', 'sft', 'init', 'rlaif')}
  texts = {name: [('a',), ('b',)] for name in values}
  assert set(summaries.changes(QA, items, values, texts)) == {'sft', 'init'}
  values.pop('rlaif')
  assert summaries.changes(QA, items, values, texts) == {}


def test_unscored_items_are_in_neither_the_mean_nor_lost():
  number = statistics.metric([1.0, 0.0, math.nan, 1.0], list('abcd'))
  assert number['value'] == pytest.approx(2 / 3)
  assert (number['n'], number['unscored']) == (3, 1)
  assert (number['low'], number['high']) == (0.5, 0.75)
  nothing = statistics.metric([math.nan], ['a'])
  assert (nothing['value'], nothing['low'], nothing['high']) == (None, 0, 1)


def test_kinds_stand_below_their_metric():
  items = items_of(list('abcd'), ['what', 'who', 'who', 'what'])
  metrics = summaries.metrics(QA, items, {'accuracy': [1.0, 0.0, 1.0, 1.0]})
  assert metrics['accuracy']['by_kind'] == {
    'what': {'value': 1.0, 'n': 2},
    'who': {'value': 0.5, 'n': 2},
  }


def test_all_hits_and_equal_scores_have_an_interval_by_their_number():
  assert statistics.metric([1.0] * 4, list('abcd'))['interval'][0] == pytest.approx(
    0.51, abs=0.01
  )
  share = 1.96**2 / (4 + 1.96**2)
  number = statistics.metric([1.0] * 4, list('abcd'), best=5.0)
  assert number['interval'] == pytest.approx((1 - share, 1 + 4 * share))
