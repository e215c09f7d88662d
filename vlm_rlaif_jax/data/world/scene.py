"""What happens in a clip of the built-in video world, as facts.

A clip is three phases of eight frames. In each phase an object does one thing, its
*predicate*: it moves, stays, appears, vanishes, becomes another color, or bounces
off a wall. A fact is `(object, phase, predicate)`; everything else the world knows
(pictures, captions, questions, answers, the truth of a claim) follows from the facts.

    phase     0 first       1 then        2 finally
    red circle  moves left    stays         vanishes
    blue ring   (hidden)      appears       moves up
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

CANVAS = 64  # pixels, both ways; decord wants multiples of 32
PHASES = 3
PHASE_FRAMES = 8
FRAMES = PHASES * PHASE_FRAMES
FPS = 8
RADIUS = 7  # pixels
LOW, HIGH = RADIUS + 2, CANVAS - RADIUS - 2  # where a center may be
STEP = 20  # pixels travelled in one phase

COLORS = {
  'red': (220, 40, 40),
  'green': (40, 180, 60),
  'blue': (50, 90, 235),
  'yellow': (240, 215, 50),
  'purple': (165, 60, 200),
  'white': (240, 240, 240),
}
SHAPES = ('circle', 'square', 'triangle', 'ring')
DIRECTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1)}
WALLS = {'left': 'left', 'right': 'right', 'up': 'top', 'down': 'bottom'}
MIRROR = {'left': 'right', 'right': 'left'}
UPSIDE_DOWN = MIRROR | {'up': 'down', 'down': 'up', 'top': 'bottom', 'bottom': 'top'}
FLIPS = {'horizontal': MIRROR, 'both': UPSIDE_DOWN}  # words that are swapped, by axes

STAYS = 'stays'
MOVES = tuple(f'moves {direction}' for direction in DIRECTIONS)
PREDICATES = (
  *MOVES,
  STAYS,
  'appears',
  'vanishes',
  *(f'becomes {color}' for color in COLORS),
  *(f'bounces off the {wall} wall' for wall in WALLS.values()),
)


@dataclasses.dataclass(frozen=True)
class Thing:
  """One object of a clip.

  Attributes:
    color, shape: its looks at the start; together they are its name.
    start: center at the start, pixels.
    predicates: what it does in each phase; '' where it is hidden for the whole phase.
  """

  color: str
  shape: str
  start: tuple[int, int]
  predicates: tuple[str, ...]

  @property
  def name(self) -> str:
    return f'{self.color} {self.shape}'

  @property
  def turns(self) -> bool:
    """Whether it moves in two consecutive phases, in different directions."""
    pairs = zip(self.predicates, self.predicates[1:], strict=False)
    return any(a in MOVES and b in MOVES and a != b for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Scene:
  """The objects of one clip, in the order in which an answer names them."""

  things: tuple[Thing, ...]

  def facts(self) -> list[tuple[str, int, str]]:
    """Returns every (object, phase, predicate) that is true."""
    return [
      (thing.name, phase, predicate)
      for thing in self.things
      for phase, predicate in enumerate(thing.predicates)
      if predicate
    ]

  def crossings(self) -> set[frozenset[str]]:
    """Returns the pairs of objects that are on top of each other at some time."""
    return {
      frozenset((a.name, b.name))
      for i, a in enumerate(self.things)
      for b in self.things[i + 1 :]
      if min_distance(a, b) <= RADIUS
    }


@functools.lru_cache(maxsize=64)  # rendering, checks and questions need the same one
def trajectory(thing: Thing) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Returns centers `float[FRAMES, 2]`, visibility `bool[FRAMES]`, a color a frame."""
  centers, visible, colors = [], [], []
  position = np.asarray(thing.start, float)
  color = thing.color
  for predicate in thing.predicates:
    verb, _, rest = predicate.partition(' ')
    for frame in range(PHASE_FRAMES):
      u = (frame + 1) / PHASE_FRAMES  # share of the phase that has passed
      late = frame >= PHASE_FRAMES // 2
      offset = np.zeros(2)
      if verb == 'moves':
        offset = STEP * u * np.asarray(DIRECTIONS[rest])
      elif verb == 'bounces':
        direction, room = _towards_wall(rest.split()[-2], position)
        offset = room * (1 - abs(2 * u - 1)) * direction
      centers.append(position + offset)
      visible.append(bool(verb) and not (verb == 'appears' and not late))
      if verb == 'vanishes' and late:
        visible[-1] = False
      colors.append(rest if verb == 'becomes' and late else color)
    if verb == 'moves':
      position = position + STEP * np.asarray(DIRECTIONS[rest])
    elif verb == 'becomes':
      color = rest
  return np.asarray(centers), np.asarray(visible), colors


def distances(a: Thing, b: Thing) -> np.ndarray:
  """Returns the pixels between two centers, `float[FRAMES]`; inf if one is hidden."""
  (centers_a, visible_a, _), (centers_b, visible_b, _) = trajectory(a), trajectory(b)
  apart = np.linalg.norm(centers_a - centers_b, axis=-1)
  return np.where(visible_a & visible_b, apart, np.inf)


def min_distance(a: Thing, b: Thing) -> float:
  """Returns the least distance (pixels) of two centers while both are visible."""
  return float(np.min(distances(a, b)))


def sample_scene(rng: np.random.Generator) -> Scene:
  """Samples a scene whose pairs of objects either clearly cross or clearly do not."""
  count = int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
  indices = sorted(rng.choice(len(COLORS), count, replace=False))
  colors = [list(COLORS)[i] for i in indices]
  crossing = count > 1 and rng.random() < 0.2
  while True:
    things = [_sample_thing(rng, color, colors) for color in colors]
    if crossing:
      things[1] = _crossing_thing(rng, things[0], things[1], colors)
    becomes = [p for t in things for p in t.predicates if p.startswith('becomes')]
    if len(set(becomes)) == len(becomes) and all(
      _is_clear(a, b) for i, a in enumerate(things) for b in things[i + 1 :]
    ):
      return Scene(tuple(things))


def _is_clear(a: Thing, b: Thing) -> bool:
  """Returns whether two objects are apart between the phases, and apart or crossing
  within each."""
  apart = distances(a, b)
  rests = apart[[0, *range(PHASE_FRAMES - 1, FRAMES, PHASE_FRAMES)]]
  touching = 2 * RADIUS + 2
  return bool(
    np.all(rests > touching) and (apart.min() <= RADIUS or apart.min() > touching)
  )


def _sample_thing(
  rng: np.random.Generator, color: str, scene_colors: Sequence[str]
) -> Thing:
  x, y = (int(v) for v in rng.integers(LOW, HIGH + 1, 2))
  hidden = int(rng.integers(0, PHASES)) if rng.random() < 0.15 else -1
  first = [''] * max(hidden, 0) + ['appears'] * (hidden >= 0)
  shape = str(rng.choice(SHAPES))
  position = np.asarray((x, y), float)
  predicates = _complete_phases(rng, position, scene_colors, first)
  return Thing(color, shape, (x, y), predicates)


def _crossing_thing(
  rng: np.random.Generator, other: Thing, thing: Thing, scene_colors: Sequence[str]
) -> Thing:
  """Returns `thing` on a course that meets `other` in a phase in which that one moves.

  Where no such course is on the canvas, `thing` stays as it is.
  """
  phases = [k for k, p in enumerate(other.predicates) if p in MOVES]
  if not phases:
    return thing
  phase = int(rng.choice(phases))
  name = other.predicates[phase].split()[1]
  direction = np.asarray(DIRECTIONS[name])
  meeting = trajectory(other)[0][phase * PHASE_FRAMES] + STEP * direction * (
    1 - 1 / PHASE_FRAMES
  )
  start = np.rint(meeting + rng.integers(-4, 5) * direction[::-1])
  if np.any(start < LOW) or np.any(start > HIGH):
    return thing
  back = {'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up'}[name]
  first = [STAYS] * phase + [f'moves {back}']
  return dataclasses.replace(
    thing,
    start=(int(start[0]), int(start[1])),
    predicates=_complete_phases(rng, start - STEP * direction, scene_colors, first),
  )


def _complete_phases(
  rng: np.random.Generator,
  position: np.ndarray,
  scene_colors: Sequence[str],
  first: Sequence[str],
) -> tuple[str, ...]:
  """Returns the predicates of all phases.

  Args:
    position: center after the first phases, pixels.
    scene_colors: colors that no object may become.
    first: predicates of the first phases; those of the others are sampled.
  """
  predicates = list(first)
  while len(predicates) < PHASES:
    if 'vanishes' in predicates:
      predicates.append('')
      continue
    predicate = _sample_predicate(rng, position, scene_colors, predicates)
    if predicate in MOVES:
      direction = DIRECTIONS[predicate.split()[1]]
      position = position + STEP * np.asarray(direction)
    predicates.append(predicate)
  return tuple(predicates)


def _sample_predicate(
  rng: np.random.Generator,
  position: np.ndarray,
  scene_colors: Sequence[str],
  before: Sequence[str],
) -> str:
  """Samples what an object does next; what the position does not admit is a move."""
  kind = rng.choice(
    ['moves', 'stays', 'becomes', 'bounces', 'vanishes'], p=[0.5, 0.26, 0.08, 0.1, 0.06]
  )
  changed = any(p.startswith('becomes') for p in before)
  if kind == 'becomes' and not changed:
    return f'becomes {rng.choice([c for c in COLORS if c not in scene_colors])}'
  if kind == 'bounces':
    near = [w for w in WALLS.values() if 10 <= _towards_wall(w, position)[1] <= 24]
    if near:
      return f'bounces off the {rng.choice(near)} wall'
  if kind == 'vanishes':
    return 'vanishes'
  if kind == 'stays':
    return STAYS
  free = [
    name
    for name, direction in DIRECTIONS.items()
    if np.all(position + STEP * np.asarray(direction) >= LOW)
    and np.all(position + STEP * np.asarray(direction) <= HIGH)
  ]
  return f'moves {rng.choice(free)}'


def _towards_wall(wall: str, position: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the unit vector to a wall and the pixels that a center may go that way."""
  name = next(d for d, w in WALLS.items() if w == wall)
  direction = np.asarray(DIRECTIONS[name])
  axis = int(np.argmax(np.abs(direction)))
  room = position[axis] - LOW if direction[axis] < 0 else HIGH - position[axis]
  return direction, float(room)


def another_predicate(rng: np.random.Generator, thing: Thing, true: str) -> str:
  """Samples a false predicate of an object.

  Each is as frequent as in true facts, so that wording alone does not give it away.
  """
  frequent = _frequent_predicates()
  while True:
    predicate = frequent[rng.integers(len(frequent))]
    if predicate not in (true, f'becomes {thing.color}'):
      return predicate


@functools.cache
def _frequent_predicates() -> tuple[str, ...]:
  """Returns the predicates of five hundred scenes, repeated as they occur."""
  rng = np.random.default_rng(0)
  return tuple(p for _ in range(500) for _, _, p in sample_scene(rng).facts())


def flip_predicate(predicate: str, axes: str = 'horizontal') -> str:
  """Returns a predicate with left and right swapped; by 'both', up and down too."""
  words = [FLIPS[axes].get(word, word) for word in predicate.split()]
  return ' '.join(words)


def flip(scene: Scene, axes: str = 'horizontal') -> Scene:
  """Returns the scene with directions swapped in what its objects do."""
  flipped = [tuple(flip_predicate(p, axes) for p in t.predicates) for t in scene.things]
  pairs = zip(scene.things, flipped, strict=True)
  return Scene(tuple(dataclasses.replace(t, predicates=p) for t, p in pairs))


def corrupt_scene(
  scene: Scene,
  rng: np.random.Generator,
  *,
  stays_to_motion: float = 0.0,
  any_predicate: float = 0.0,
  phantom: float = 0.0,
  omission: float = 0.0,
) -> Scene:
  """Returns the scene with some facts replaced, as a careless witness reports it.

  Args:
    stays_to_motion: probability that a "stays" is reported as a random motion.
    any_predicate: probability that a predicate is replaced by another one.
    phantom: probability that an object is reported that is not there.
    omission: probability that one of several objects is left out.
  """
  things = []
  for thing in scene.things:
    predicates = []
    for predicate in thing.predicates:
      if predicate == STAYS and rng.random() < stays_to_motion:
        predicate = str(rng.choice(MOVES))
      elif predicate and rng.random() < any_predicate:
        predicate = another_predicate(rng, thing, predicate)
      predicates.append(predicate)
    things.append(dataclasses.replace(thing, predicates=tuple(predicates)))
  if len(things) > 1 and rng.random() < omission:
    things.pop(rng.integers(len(things)))
  present = {thing.color for thing in scene.things}
  absent = [color for color in COLORS if color not in present]
  if len(things) < 3 and rng.random() < phantom:
    things.append(_sample_thing(rng, str(rng.choice(absent)), list(COLORS)[:-1]))
    things.sort(key=lambda thing: list(COLORS).index(thing.color))
  return Scene(tuple(things))
