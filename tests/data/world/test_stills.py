"""Pictures and strips of the tiny base, and the questions about them."""

import re

import numpy as np
import pytest

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world import language, render, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene


def scene_of(seed: int) -> Scene:
  return scenes.sample_scene(np.random.default_rng([5, seed]))


def test_questions_about_a_still_follow_from_its_objects():
  rng = np.random.default_rng(0)
  picture = stills.sample_picture(rng)
  assert picture.frame.shape == (64, 64, 3)
  answers = dict(stills.picture_rounds(picture, rng))
  (color, shape), *_ = picture.objects
  assert f'{color} {shape} at the' in answers['What is in the picture?'].lower()
  assert (
    answers['How many objects are there?'].lower()
    == language.NUMBERS[len(picture.objects)]
  )
  assert stills.place((10, 10)) == 'top left'
  assert stills.place((32, 32)) == 'middle'
  assert stills.place((60, 32)) == 'right'
  assert Video(('a.mp4',)).frames(12) == 12


@pytest.mark.parametrize('seed', range(20))
def test_strips_show_a_scene_and_say_how_it_differs(seed):
  scene = scene_of(seed)
  frames = stills.strip_pictures(scene)
  assert frames.shape == (12, scenes.CANVAS, scenes.CANVAS, 3)
  np.testing.assert_array_equal(frames[[0, -1]], render.render(scene)[[0, -1]])
  for phase in range(scenes.PHASES):  # a part has its own pictures, of that phase only
    ends = [8 * phase, 8 * phase + 7]
    pictures = stills.part_pictures(scene, phase)[[0, -1]]
    np.testing.assert_array_equal(pictures, render.render(scene)[ends])
  rounds = stills.strip_rounds(scene, np.random.default_rng(seed), short=8)
  courses = {
    thing.name: ', '.join(p or 'gone' for p in thing.predicates)
    for thing in scene.things
  }
  parts = [
    (match[1], answer.lower().strip('.'))
    for question, answer in rounds
    if (match := re.fullmatch(r'How does the (\w+ \w+) differ\?', question))
  ]
  if not parts:
    question, answer = rounds[-1]
    assert question == 'How do they differ?'
    parts = [
      (' '.join(one.split()[:2]), ' '.join(one.split()[2:]))
      for one in answer.lower().strip('.').split('. ')
    ]
    last = 1
  else:
    last = len(parts)
  assert dict(parts) == courses and len(parts) == len(courses)
  # Short questions come first: after the courses they could be read off.
  for question, answer in rounds[:-last]:
    assert question.startswith(('In the', 'Do the'))
    match = re.fullmatch(r'In the (\w+) pictures the (\w+ \w+) (.*)\?', question)
    if match:
      fact = (match[2], stills.PARTS.index(match[1]), match[3])
      assert answer == ('Yes' if fact in scene.facts() else 'No')


def test_lists_end_with_everything():
  rng = np.random.default_rng(0)
  for seed in range(20):
    *_, (question, answer) = stills.list_rounds(scene_of(seed), rng)
    facts = sum(len(t.predicates) for t in scene_of(seed).things)
    assert question == 'How do they differ?'
    assert answer.count(',') + answer.count('.') == facts
