"""Scenes are what they say: facts, courses on the canvas, pictures of them."""

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import render
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene, Thing

SCENE = Scene(
  (
    Thing('red', 'circle', (30, 30), ('moves left', 'stays', 'vanishes')),
    Thing('blue', 'ring', (50, 50), ('', 'appears', 'moves up')),
  )
)


def scene_of(seed: int) -> Scene:
  return scenes.sample_scene(np.random.default_rng([5, seed]))


def test_facts_of_a_scene():
  assert SCENE.facts() == [
    ('red circle', 0, 'moves left'),
    ('red circle', 1, 'stays'),
    ('red circle', 2, 'vanishes'),
    ('blue ring', 1, 'appears'),
    ('blue ring', 2, 'moves up'),
  ]


def test_the_pictures_show_the_facts():
  centers, visible, _ = scenes.trajectory(SCENE.things[0])
  assert centers[0][0] > centers[7][0]  # left
  assert (centers[8:16] == centers[8]).all()  # stays
  assert visible[:20].all() and not visible[20:].any()  # vanishes half-way
  _, visible, _ = scenes.trajectory(SCENE.things[1])
  assert not visible[:12].any() and visible[12:].all()
  frames = render.render(SCENE)
  red = (np.abs(frames.astype(int) - scenes.COLORS['red']).sum(-1) < 60).sum((1, 2))
  assert (red[:20] > 50).all() and (red[20:] == 0).all()


@pytest.mark.parametrize('seed', range(40))
def test_objects_stay_on_the_canvas_and_apart_between_phases(seed):
  scene = scene_of(seed)
  for thing in scene.things:
    centers, visible, _ = scenes.trajectory(thing)
    assert (centers[visible] >= scenes.LOW - 1).all()
    assert (centers[visible] <= scenes.HIGH + 1).all()
    assert len(thing.predicates) == scenes.PHASES and any(thing.predicates)
