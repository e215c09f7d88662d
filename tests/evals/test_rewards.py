"""Rewards are kept one by one, and used again only for the same answer."""

import json
import math

import numpy as np
import pytest

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import rewards
from vlm_rlaif_jax.evals.records import Item

IDENTITY = {'weights': 'a'}


class Scorer:
  """Rewards answers by their length; over ten characters they do not fit."""

  def __init__(self, limit=99, contents='as it was'):
    self.limit, self.scored, self.of_last = limit, [], contents

  def contents(self, video):
    return self.of_last if video.paths == ('1.mp4',) else 'as it was'

  def encode(self, question, answer, closed):
    return np.zeros(len(answer) + (0 if closed else 1), np.int32)

  def length(self, ids, video):
    if len(ids) > 10:
      raise ValueError(f'{len(ids)} tokens do not fit')
    return 10

  def score(self, sequences, videos, on_score):
    for index, ids in enumerate(sequences):
      if len(self.scored) == self.limit:
        raise KeyboardInterrupt
      self.scored.append(len(ids))
      on_score(index, float(len(ids)))


def items_of(count):
  return [
    Item(key=f'k{i}', video=Video((f'{i}.mp4',)), video_name=f'v{i}', prompts=('W?',))
    for i in range(count)
  ]


def rows_of(*texts, ended=True):
  return [{'answers': [text], 'ended': [ended]} for text in texts]


def test_what_was_scored_before_a_kill_is_not_scored_again(tmp_path):
  path = tmp_path / 'own' / rewards.file_name('sft')
  items, rows = items_of(4), rows_of('a', 'bb', 'a longer answer', 'dddd')
  first = Scorer(limit=2)
  with pytest.raises(KeyboardInterrupt):
    rewards.score(first, items, rows, IDENTITY, path)
  path.write_text(path.read_text() + '{"key": "k3", "dig')  # and in a line
  second = Scorer()
  values = rewards.score(second, items, rows, IDENTITY, path)
  assert second.scored == [4]
  assert values[:2] == [1, 2] and math.isnan(values[2]) and values[3] == 4
  kept = [json.loads(line) for line in path.read_text().splitlines()]
  assert {row['key'] for row in kept} == {'k0', 'k1', 'k2', 'k3'} and len(kept) == 4
  (long,) = [row for row in kept if row['reward'] is None]
  assert long['key'] == 'k2' and long['error'] == '15 tokens do not fit'
  third = Scorer()
  again = rewards.score(third, items, rows, IDENTITY, path)
  np.testing.assert_array_equal(again, values)
  assert third.scored == []


@pytest.mark.parametrize(
  'change', ['answer', 'ended', 'video', 'weights', 'contents', 'restart']
)
def test_what_a_reward_depends_on_makes_it_another(tmp_path, change):
  path = tmp_path / rewards.file_name('sft')
  items, rows, identity = items_of(2), rows_of('a', 'bb'), IDENTITY
  rewards.score(Scorer(), items, rows, identity, path)
  if change == 'answer':
    rows = rows_of('a', 'bbb')
  elif change == 'ended':
    rows = [rows[0], *rows_of('bb', ended=False)]
  elif change == 'video':
    other = Video(('other.mp4',))
    items[1] = Item(key='k1', video=other, video_name='v', prompts=('W?',))
  elif change == 'weights':
    identity = {'weights': 'b'}
  scorer = Scorer(contents='other' if change == 'contents' else 'as it was')
  rewards.score(scorer, items, rows, identity, path, change != 'restart')
  assert len(scorer.scored) == (2 if change in ('weights', 'restart') else 1)
