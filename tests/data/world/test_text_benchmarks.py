"""Wrong captions and main actions of clips."""

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import language, text_benchmarks
from vlm_rlaif_jax.data.world.scene import Scene, Thing, sample_scene

START = (30, 30)


def scene(*actions):
  colors = ('red', 'blue', 'white')
  things = zip(colors, actions, strict=False)
  return Scene(tuple(Thing(color, 'ring', START, part) for color, part in things))


def test_a_wrong_description_differs_in_one_fact(rng):
  for _ in range(20):
    right = sample_scene(rng)
    for text in text_benchmarks.wrong_descriptions(right, rng, 4):
      assert text != language.description(right)
    changed = text_benchmarks.with_one_change(right, rng)
    pairs = list(zip(right.things, changed.things, strict=True))
    looks = sum((a.color, a.shape) != (b.color, b.shape) for a, b in pairs)
    actions = sum(
      x != y for a, b in pairs for x, y in zip(a.predicates, b.predicates, strict=True)
    )
    assert looks + actions == 1
    assert len({thing.name for thing in changed.things}) == len(pairs)


@pytest.mark.parametrize(
  ('actions', 'main', 'first'),
  [
    ([('moves left', 'stays', 'moves left')], ['moves left'], ['moves left']),
    ([('moves left', 'moves up', 'stays')], ['moves left', 'moves up'], ['moves left']),
    ([('stays', 'stays', 'becomes red')], ['changes color'], ['changes color']),
    (
      [('', 'appears', 'bounces off the top wall')],
      ['appears', 'bounces'],
      ['appears'],
    ),
    ([('stays', 'stays', 'stays')], ['stays'], ['stays']),
    (
      [('moves up', 'vanishes', ''), ('moves down', 'vanishes', '')],
      ['vanishes'],
      ['moves up', 'moves down'],
    ),
  ],
)
def test_actions_of_a_scene(actions, main, first):
  assert text_benchmarks.main_actions(scene(*actions)) == main
  assert text_benchmarks.first_actions(scene(*actions)) == first


def test_clips_of_several_actions_stand_in_where_there_are_few():
  clear, unclear = scene(('stays', 'appears', '')), scene(('moves up', 'appears', ''))
  few = [(3, unclear), (5, clear)]
  main = text_benchmarks.main_actions
  assert text_benchmarks.labeled(few, main) == [(5, 'appears'), (3, 'moves up')]
  many = [(number, clear) for number in range(10)]
  assert text_benchmarks.labeled([*few, *many], main)[0] == (5, 'appears')
  assert len(text_benchmarks.labeled([*few, *many], main)) == 11


def test_two_of_three_videos_are_tested_by_a_split():
  numbers = range(12)
  tests = [
    {n for n in numbers if text_benchmarks._is_test(n, split)} for split in (1, 2, 3)
  ]
  assert [len(part) for part in tests] == [8, 8, 8]
  assert set.union(*tests) == set(numbers)
  assert not set.intersection(*tests)
  assert np.bincount([n for part in tests for n in part]).tolist() == [2] * 12
