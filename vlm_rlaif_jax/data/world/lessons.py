"""Batches that the tiny base is trained on: pictures to see, and to talk about."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world import stills
from vlm_rlaif_jax.settings.pretrain import PretrainRun

COLORS: list[str] = list(scenes.COLORS)
SHAPES: list[str] = list(scenes.SHAPES)
FIELDS = 1 + len(SHAPES) + 2  # of the probe, a color: there? which shape? x, y
COURSES = len(scenes.PREDICATES) + 1  # what an object does in a phase; or it is hidden
LENGTHS = {  # ids of a sample: in lists, and in questions
  'strip': (80, 160), 'part': (56, 56), 'still': (88, 88), 'text': (160, 192)
}  # fmt: skip
PREFIX = 40  # more, where the words before the first question are shown, too
CHUNK = 64  # pictures of a kind that are seen at a time


def faces(tokenizer: tokens.Tokenizer, settings: PretrainRun, number: int) -> dict:
  """Batch of the tower: pictures with attributes, and captions for half of them."""
  rng = np.random.default_rng([settings.seed, 11, number])
  size = settings.pretrain.tower_batch
  made = [stills.sample_picture(rng) for _ in range(size)]
  captions = [
    [*tokenizer.pieces(picture.caption), tokenizer.eos] for picture in made[: size // 2]
  ]
  length = settings.model.text.context
  return {
    'faces': np.stack([picture.frame for picture in made]),
    'attributes': np.stack([attributes(picture) for picture in made]),
    'captions': tokens.pad([c[:length] for c in captions], length, 'right'),
  }


class Looked(NamedTuple):
  """What pictures show, and their visual tokens `float16[N, F + P, D]`."""

  shown: list
  visual: np.ndarray


def look(settings: PretrainRun, see, bar) -> tuple[Looked, Looked, Looked]:
  """Strips, parts of strips, and single pictures, looked at once.

  Args:
    see: numbers of a kind and of a chunk, `uint8[B, F, S, S, 3]` -> visual tokens.
    bar: a range and a title -> the range, showing how far it has come.
  """

  def strip(rng):
    scene = scenes.sample_scene(rng)
    return scene, stills.strip_pictures(scene)

  def part(rng):
    scene, phase = scenes.sample_scene(rng), int(rng.integers(scenes.PHASES))
    return (scene, phase), stills.part_pictures(scene, phase)

  def still(rng):
    picture = stills.sample_still(rng)
    return picture, picture.frame[None]

  def seen(kind: int, title: str, make, chunks: int) -> Looked:
    shown, visual = [], []
    for number in bar(range(chunks), f'base: see {title}'):
      rng = np.random.default_rng([settings.seed, 12, kind, number])
      made = [make(rng) for _ in range(CHUNK)]
      shown += [one for one, _ in made]
      visual.append(see(kind, number, np.stack([frames for _, frames in made])))
    return Looked(shown, np.concatenate(visual))

  count = -(-settings.pretrain.lists_strips // CHUNK)
  return (
    seen(0, 'strips', strip, count),
    seen(1, 'parts', part, -(-count // 4)),
    seen(2, 'stills', still, -(-count // 2)),
  )


@dataclasses.dataclass(frozen=True)
class Talk:
  """Makes batch number n of a phase, the same whenever it is asked for."""

  tokenizer: tokens.Tokenizer
  settings: PretrainRun
  strips: Looked
  parts: Looked
  stills: Looked

  def batch(self, phase: str, number: int) -> dict:
    """Samples of four tasks: ids, weights of those to predict, visual tokens."""
    made = self.settings.pretrain
    last = number >= (1 - made.questions_whole) * made.questions_steps
    whole = phase == 'forms' or (phase == 'questions' and last)
    stream = {'questions': 13, 'lists': 14, 'forms': 15}[phase]
    rng = np.random.default_rng([self.settings.seed, stream, number])
    batch = {}
    for name, share, looked, ask in self._tasks(phase, rng):
      count = math.ceil(getattr(made, f'{phase}_batch') * share)
      picked = rng.integers(len(looked.shown), size=count)
      said = [ask(looked.shown[index]) for index in picked]
      batch[name] = self.encode(said, name, lists=phase == 'lists', whole=whole)
      if name != 'text':
        batch[name]['visual'] = looked.visual[picked]
      if name == 'strip':
        courses = [scene_courses(looked.shown[index]) for index in picked]
        batch[name] |= {key: np.stack([c[key] for c in courses]) for key in courses[0]}
    return batch

  def _tasks(self, phase: str, rng) -> tuple[tuple[str, float, Looked, Callable], ...]:
    """Name, share of the batch's size, what is asked about, and what is asked of it."""
    strip = lambda scene: stills.strip_rounds(scene, rng, looks=6)
    text = lambda scene: stills.reading(scene, rng, judged=0.5)
    strips, texts = 1, 1
    if phase == 'lists':
      strip = lambda scene: stills.list_rounds(scene, rng)
      text = lambda scene: stills.reading(scene, rng, judged=0.15)
      texts = 1 / 2
    elif phase == 'forms':
      read = text
      text = lambda s: stills.answering(s, rng) if rng.random() < 0.7 else read(s)
      strips = 1 / 2
    part = lambda one: stills.part_rounds(one[0], one[1], rng)
    still = lambda picture: stills.picture_rounds(picture, rng)
    return (
      ('strip', strips, self.strips, strip),
      ('part', 1 / 4, self.parts, part),
      ('still', 1 / 4, self.stills, still),
      ('text', texts, self.strips, text),
    )

  def encode(self, said, name: str, *, lists: bool, whole: bool) -> dict:
    """Ids and weights of as many whole rounds as fit; none of a longer first one.

    Args:
      whole: with the words before the first question; they are the same every time,
        and cost a quarter of a step.
    """
    length = LENGTHS[name][not lists] + PREFIX * whole
    ids, weights = [], []
    judged = [self.tokenizer.option(word) for word in ('Yes', 'No')]
    for rounds in said:
      one = tokens.encode_conversation(self.tokenizer, rounds, video=name != 'text')
      kept, target = one.ids, one.target
      if not whole:
        start = len(self._prefix) if name == 'text' else np.argmax(kept == tokens.VIDEO)
        kept, target = (np.r_[part[0], part[start:]] for part in (kept, target))
      ends = np.flatnonzero(kept[:length] == self.tokenizer.eos)
      stop = ends[-1] + 1 if len(ends) else 0
      more = np.where(np.isin(kept, judged), self.settings.pretrain.judged, 1)
      ids.append(kept[:stop])
      weights.append((target * more).astype(np.float32)[:stop])
    return {
      'ids': tokens.pad(ids, length, 'right'),
      'weight': tokens.pad(weights, length, 'right', 0),
    }

  @functools.cached_property
  def _prefix(self) -> list[int]:
    return self.tokenizer.encode(prompts.SYSTEM)


def scene_courses(scene: scenes.Scene) -> dict[str, np.ndarray]:
  """What a probe of a strip has to read, by color.

  `does int32[phases, colors]`: which predicate; the last: hidden; -1: no such color.
  `moves float32[STRIP, colors, 3]`: whether it is seen in this picture and in the one
  before, and how far it has moved since (5 pixels).
  """
  numbers = stills.shown()
  does = np.full((scenes.PHASES, len(COLORS)), -1, np.int32)
  moves = np.zeros((len(numbers), len(COLORS), 3), np.float32)
  for thing in scene.things:
    column = COLORS.index(thing.color)
    does[:, column] = [
      scenes.PREDICATES.index(said) if said else COURSES - 1
      for said in thing.predicates
    ]
    centers, visible, _ = scenes.trajectory(thing)
    both = visible[numbers[1:]] & visible[numbers[:-1]]
    moves[1:, column, 0] = both
    moves[1:, column, 1:] = np.diff(centers[numbers], axis=0) / 5 * both[:, None]
  return {'does': does, 'moves': moves}


def attributes(picture: stills.Picture) -> np.ndarray:
  """`float32[colors, 4]`: there, index of the shape, x and y in [0, 1]."""
  table = np.zeros((len(COLORS), 4), np.float32)
  for (color, shape), center in zip(picture.objects, picture.centers, strict=True):
    table[COLORS.index(color)] = [
      1, SHAPES.index(shape), center[0] / scenes.CANVAS, center[1] / scenes.CANVAS
    ]  # fmt: skip
  return table
