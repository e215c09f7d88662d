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
  """One object: its looks, where it starts (pixels), what it does in each phase.

  `predicates[k]` is '' while the object is hidden for the whole of phase k.
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
    """Whether it moves in two phases running, in different directions."""
    pairs = zip(self.predicates, self.predicates[1:], strict=False)
    return any(a in MOVES and b in MOVES and a != b for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Scene:
  """The objects of one clip, in the order in which an answer names them."""

  things: tuple[Thing, ...]

  def facts(self) -> list[tuple[str, int, str]]:
    """Every (object, phase, predicate) that is true."""
    return [
      (thing.name, phase, predicate)
      for thing in self.things
      for phase, predicate in enumerate(thing.predicates)
      if predicate
    ]

  def crossings(self) -> set[frozenset[str]]:
    """Pairs of objects that are on top of each other at some time."""
    return {
      frozenset((a.name, b.name))
      for i, a in enumerate(self.things)
      for b in self.things[i + 1 :]
      if nearest(a, b) <= RADIUS
    }


@functools.lru_cache(maxsize=64)  # a scene is drawn, checked and asked about
def trajectory(thing: Thing):
  """Center `float[FRAMES, 2]`, visibility `bool[FRAMES]` and color a frame."""
  centers, visible, colors = [], [], []
  here = np.asarray(thing.start, float)
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
        way, room = _towards_wall(rest.split()[-2], here)
        offset = room * (1 - abs(2 * u - 1)) * way
      centers.append(here + offset)
      visible.append(bool(verb) and not (verb == 'appears' and not late))
      if verb == 'vanishes' and late:
        visible[-1] = False
      colors.append(rest if verb == 'becomes' and late else color)
    if verb == 'moves':
      here = here + STEP * np.asarray(DIRECTIONS[rest])
    elif verb == 'becomes':
      color = rest
  return np.asarray(centers), np.asarray(visible), colors


def nearest(a: Thing, b: Thing) -> float:
  """Least distance (pixels) between two centers while both are visible."""
  (xa, va, _), (xb, vb, _) = trajectory(a), trajectory(b)
  apart = np.linalg.norm(xa - xb, axis=-1)
  return float(np.min(np.where(va & vb, apart, np.inf)))


def sample_scene(rng: np.random.Generator) -> Scene:
  """A random scene; pairs of objects either clearly cross or clearly do not."""
  count = int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
  picked = sorted(rng.choice(len(COLORS), count, replace=False))
  colors = [list(COLORS)[i] for i in picked]
  crossing = count > 1 and rng.random() < 0.2
  while True:
    things = [_sample_thing(rng, color, colors) for color in colors]
    if crossing:
      things[1] = _crossing_thing(rng, things[0], things[1], colors)
    becomes = [p for t in things for p in t.predicates if p.startswith('becomes')]
    if len(set(becomes)) == len(becomes) and all(
      _clear(a, b) for i, a in enumerate(things) for b in things[i + 1 :]
    ):
      return Scene(tuple(things))


def _clear(a: Thing, b: Thing) -> bool:
  """Apart between the phases, and within a phase either apart or truly crossing."""
  (xa, va, _), (xb, vb, _) = trajectory(a), trajectory(b)
  apart = np.where(va & vb, np.linalg.norm(xa - xb, axis=-1), np.inf)
  rests = apart[[0, *range(PHASE_FRAMES - 1, FRAMES, PHASE_FRAMES)]]
  touching = 2 * RADIUS + 2
  return bool(
    np.all(rests > touching) and (apart.min() <= RADIUS or apart.min() > touching)
  )


def _sample_thing(rng, color: str, taken: list[str]) -> Thing:
  x, y = (int(v) for v in rng.integers(LOW, HIGH + 1, 2))
  hidden = int(rng.integers(0, PHASES)) if rng.random() < 0.15 else -1
  so_far = [''] * max(hidden, 0) + ['appears'] * (hidden >= 0)
  return Thing(
    color, str(rng.choice(SHAPES)), (x, y), _continue(rng, (x, y), taken, so_far)
  )


def _crossing_thing(rng, other: Thing, thing: Thing, taken: list[str]) -> Thing:
  """`thing` on a course that meets `other` in a phase in which that one moves."""
  phases = [k for k, p in enumerate(other.predicates) if p in MOVES]
  if not phases:
    return thing
  phase = int(rng.choice(phases))
  direction = other.predicates[phase].split()[1]
  way = np.asarray(DIRECTIONS[direction])
  there = trajectory(other)[0][phase * PHASE_FRAMES] + STEP * way * (
    1 - 1 / PHASE_FRAMES
  )
  start = np.rint(there + rng.integers(-4, 5) * way[::-1])
  if np.any(start < LOW) or np.any(start > HIGH):
    return thing
  back = {'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up'}[direction]
  so_far = [STAYS] * phase + [f'moves {back}']
  here = start - STEP * way
  return Thing(
    thing.color,
    thing.shape,
    (int(start[0]), int(start[1])),
    _continue(rng, here, taken, so_far),
  )


def _continue(rng, here, taken, so_far: list[str]) -> tuple[str, ...]:
  """Fills the phases that `so_far` leaves open, from position `here` on."""
  predicates, here = list(so_far), np.asarray(here, float)
  while len(predicates) < PHASES:
    if 'vanishes' in predicates:
      predicates.append('')
      continue
    predicate = _sample_predicate(rng, here, taken, predicates)
    if predicate in MOVES:
      here = here + STEP * np.asarray(DIRECTIONS[predicate.split()[1]])
    predicates.append(predicate)
  return tuple(predicates)


def _sample_predicate(rng, here, taken, so_far) -> str:
  kind = rng.choice(
    ['moves', 'stays', 'becomes', 'bounces', 'vanishes'], p=[0.5, 0.26, 0.08, 0.1, 0.06]
  )
  changed = any(p.startswith('becomes') for p in so_far)
  if kind == 'becomes' and not changed:
    return f'becomes {rng.choice([c for c in COLORS if c not in taken])}'
  if kind == 'bounces':
    near = [w for w in WALLS.values() if 10 <= _towards_wall(w, here)[1] <= 24]
    if near:
      return f'bounces off the {rng.choice(near)} wall'
  if kind == 'vanishes':
    return 'vanishes'
  if kind == 'stays':
    return STAYS
  free = [
    name
    for name, way in DIRECTIONS.items()
    if np.all(here + STEP * np.asarray(way) >= LOW)
    and np.all(here + STEP * np.asarray(way) <= HIGH)
  ]
  return f'moves {rng.choice(free)}'


def _towards_wall(wall: str, here) -> tuple[np.ndarray, float]:
  """Unit vector to a wall and the way (pixels) that a center may go towards it."""
  direction = next(d for d, w in WALLS.items() if w == wall)
  way = np.asarray(DIRECTIONS[direction])
  axis = int(np.argmax(np.abs(way)))
  room = here[axis] - LOW if way[axis] < 0 else HIGH - here[axis]
  return way, float(room)


def another_predicate(rng, thing: Thing, true: str) -> str:
  """A false one, as often as the world has it: wording alone does not give it away."""
  usual = _usual_predicates()
  while True:
    said = usual[rng.integers(len(usual))]
    if said not in (true, f'becomes {thing.color}'):
      return said


@functools.cache
def _usual_predicates() -> tuple[str, ...]:
  """The predicates of five hundred scenes."""
  rng = np.random.default_rng(0)
  return tuple(p for _ in range(500) for _, _, p in sample_scene(rng).facts())


def altered(
  scene: Scene,
  rng: np.random.Generator,
  *,
  stays_to_motion: float = 0.0,
  any_predicate: float = 0.0,
  phantom: float = 0.0,
  omission: float = 0.0,
) -> Scene:
  """What a careless witness would report: the scene with some facts replaced.

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
  free = [color for color in COLORS if color not in {t.color for t in scene.things}]
  if len(things) < 3 and rng.random() < phantom:
    things.append(_sample_thing(rng, str(rng.choice(free)), list(COLORS)[:-1]))
    things.sort(key=lambda thing: list(COLORS).index(thing.color))
  return Scene(tuple(things))
