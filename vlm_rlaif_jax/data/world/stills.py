"""Still pictures that the tiny base is trained on, with questions about them.

The base plays the part of a pretrained image-text model: it has seen single pictures
and strips of stills taken one after another, never a video. It has words for how an
object differs along a strip, but no question of the video data is asked about strips.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vlm_rlaif_jax.data.world import language, questions, render
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.questions import Rounds

T = TypeVar('T')

ROWS, COLUMNS = ('top', 'middle', 'bottom'), ('left', 'middle', 'right')
STRIP = 12  # pictures of a whole scene
PARTS = ('first', 'middle', 'last')  # of a strip, one a phase
PART = 4  # pictures of one phase


def shuffled(items: Sequence[T], rng: np.random.Generator) -> tuple[T, ...]:
  """Returns the items in random order."""
  return tuple(items[i] for i in rng.permutation(len(items)))


# ---------------------------------------------------------------- single pictures


@dataclasses.dataclass(frozen=True)
class Picture:
  """One still: `uint8[S, S, 3]`, (color, shape) of each object, centers, caption."""

  frame: np.ndarray
  objects: tuple[tuple[str, str], ...]
  centers: np.ndarray
  caption: str


def sample_picture(rng: np.random.Generator) -> Picture:
  """Samples up to three objects at random places (fractions of a pixel, too)."""
  count = int(rng.choice([0, 1, 2, 3], p=[0.04, 0.26, 0.35, 0.35]))
  indices = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  objects = tuple(
    (list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in indices
  )
  centers = np.zeros((count, 2))
  frame = np.empty((scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frame[:] = render.BACKGROUND
  for i, (color, shape) in enumerate(objects):
    centers[i] = _free_spot(rng, centers[:i]) + rng.random(2)
    render.draw(frame, shape, color, centers[i])
  caption = picture_caption(objects, centers) if objects else language.NOTHING
  return Picture(frame, objects, centers, caption)


def sample_still(rng: np.random.Generator) -> Picture:
  """Samples a picture of at least one object."""
  while not (picture := sample_picture(rng)).objects:
    pass
  return picture


def _free_spot(rng: np.random.Generator, others: np.ndarray) -> np.ndarray:
  """Returns a center apart from the others; any center after fifty tries."""
  for _ in range(50):
    center = rng.integers(scenes.LOW, scenes.HIGH + 1, 2)
    if all(np.linalg.norm(center - o) > 2 * scenes.RADIUS + 1 for o in others):
      break
  return center


def place(center: Sequence[float] | np.ndarray) -> str:
  """Returns the place of a center (pixels): 'top left', 'left', 'middle', ..."""
  column, row = (int(min(v, scenes.CANVAS - 1) * 3 // scenes.CANVAS) for v in center)
  words = [
    word
    for word in dict.fromkeys((ROWS[row], COLUMNS[column]))
    if word != 'middle' or row == column == 1
  ]
  return ' '.join(words)


def picture_caption(objects: Sequence[tuple[str, str]], centers: np.ndarray) -> str:
  """Returns 'A red circle at the top left and a blue ring at the right.'"""
  parts = [
    f'a {color} {shape} at the {place(center)}'
    for (color, shape), center in zip(objects, centers, strict=True)
  ]
  return language.sentence(' and '.join(parts))


def picture_rounds(picture: Picture, rng: np.random.Generator) -> Rounds:
  """Returns questions about a picture of at least one object, shuffled."""
  objects = picture.objects
  rounds = [('What is in the picture?', picture.caption)]
  index = rng.integers(len(objects))
  color, shape = objects[index]
  answer = place(picture.centers[index]).capitalize()
  rounds.append((f'Where is the {color} {shape}?', answer))
  if sum(s == shape for _, s in objects) == 1:
    rounds.append((f'What color is the {shape}?', color.capitalize()))
  rounds.append((f'What shape is the {color} object?', shape.capitalize()))
  number = language.NUMBERS[len(objects)].capitalize()
  rounds.append(('How many objects are there?', number))
  scene = scenes.Scene(
    tuple(scenes.Thing(c, s, (0, 0), ('',) * scenes.PHASES) for c, s in objects)
  )
  exists = rng.random() < 0.5
  name = f'{color} {shape}' if exists else questions.absent_name(scene, rng)
  rounds.append((f'Is there a {name}?', 'Yes' if exists else 'No'))
  return shuffled(rounds, rng)


# ---------------------------------------------------------------- strips of pictures


def strip_frames() -> np.ndarray:
  """Returns the numbers of the frames that are a strip's pictures, `int[STRIP]`."""
  return np.rint(np.linspace(0, scenes.FRAMES - 1, STRIP)).astype(int)


def strip_pictures(scene: scenes.Scene) -> np.ndarray:
  """Returns stills of a scene in order, `uint8[STRIP, S, S, 3]`."""
  return render.render(scene, strip_frames())


def part_pictures(scene: scenes.Scene, phase: int) -> np.ndarray:
  """Returns stills of one phase in order, `uint8[PART, S, S, 3]`."""
  first = phase * scenes.PHASE_FRAMES
  last = first + scenes.PHASE_FRAMES - 1
  return render.render(scene, np.rint(np.linspace(first, last, PART)).astype(int))


def list_rounds(scene: scenes.Scene, rng: np.random.Generator) -> Rounds:
  """Returns a few short questions, then one whose answer lists all differences.

  Most tokens of a list are facts, so it teaches more a step than anything else here.
  """
  return (*_short_rounds(scene, rng, 4 - len(scene.things)), list_round(scene, rng))


def strip_rounds(scene: scenes.Scene, rng: np.random.Generator, short: int) -> Rounds:
  """Returns questions about a strip: short ones, then all that its objects do.

  The short ones come first: their answers could be read off the others.

  Args:
    short: how many short questions, at most.
  """
  rounds = _short_rounds(scene, rng, short)
  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    a, b = scene.things[a].name, scene.things[b].name
    meet = 'Yes' if frozenset((a, b)) in scene.crossings() else 'No'
    if meet == 'Yes' or rng.random() < 0.3:
      meeting = (f'Do the {a} and the {b} meet in a picture?', meet)
      rounds.insert(rng.integers(len(rounds) + 1), meeting)
  if rng.random() < 0.4:
    return (*rounds, list_round(scene, rng))
  courses = [
    (f'How does the {thing.name} differ?', language.sentence(_course(thing)))
    for thing in scene.things
  ]
  return (*rounds, *shuffled(courses, rng))


def part_rounds(scene: scenes.Scene, phase: int, rng: np.random.Generator) -> Rounds:
  """Returns questions about the pictures of one phase."""
  visible = [thing for thing in scene.things if thing.predicates[phase]]
  if not visible:
    return (('What is in the pictures?', language.NOTHING),)
  caption = ' and '.join(f'a {t.name} {t.predicates[phase]}' for t in visible)
  rounds = [('What is in the pictures?', language.sentence(caption))]
  thing = visible[rng.integers(len(visible))]
  answer = language.sentence(thing.predicates[phase])
  rounds.append((f'How does the {thing.name} differ?', answer))
  return shuffled(rounds, rng)


def list_round(scene: scenes.Scene, rng: np.random.Generator) -> tuple[str, str]:
  """Returns a question whose answer is what every object does, objects in any order.

  'Red circle moves left, stays, gone. Blue ring ...'
  """
  sentences = [language.sentence(f'{t.name} {_course(t)}') for t in scene.things]
  return 'How do they differ?', ' '.join(shuffled(sentences, rng))


def _course(thing: scenes.Thing) -> str:
  return ', '.join(predicate or 'gone' for predicate in thing.predicates)


def _short_rounds(
  scene: scenes.Scene, rng: np.random.Generator, count: int
) -> list[tuple[str, str]]:
  """Short questions, each about what one object does in one part; no fact twice."""
  facts = scene.facts()
  rounds = []
  for index in rng.permutation(len(facts))[:count]:
    name, phase, predicate = facts[index]
    when = f'In the {PARTS[phase]} pictures'
    alone = sum(fact[1:] == (phase, predicate) for fact in facts) == 1
    kind = rng.choice(['how', 'whether', 'which'], p=[0.45, 0.45, 0.1])
    if kind == 'whether':
      true = rng.random() < 0.5
      if not true:
        predicate = questions.other_predicate(scene, name, phase, rng)
      rounds.append((f'{when} the {name} {predicate}?', 'Yes' if true else 'No'))
    elif kind == 'which' and alone and len(scene.things) > 1:
      rounds.append((f'{when} which one {predicate}?', name.capitalize()))
    else:
      question = f'{when} how does the {name} differ?'
      rounds.append((question, language.sentence(predicate)))
  return rounds
