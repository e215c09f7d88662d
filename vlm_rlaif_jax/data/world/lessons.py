"""Batches that the tiny base is trained on: pictures, and texts about them.

Batch number n of a phase is a pure function of the settings and of n, so a resumed run
trains on what it would have been trained on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world import stills, texts
from vlm_rlaif_jax.data.world.questions import Rounds
from vlm_rlaif_jax.settings.constants import PAD, VIDEO
from vlm_rlaif_jax.settings.pretrain import PretrainRun

COLORS: list[str] = list(scenes.COLORS)
SHAPES: list[str] = list(scenes.SHAPES)
FIELDS = 1 + len(SHAPES) + 2  # of the probe, a color: present? which shape? x, y
ACTIONS = len(scenes.PREDICATES) + 1  # what an object does in a phase; or it is hidden
LENGTHS = {  # ids of a sample: in lists, and in questions
  'strip': (80, 160), 'part': (56, 56), 'still': (88, 88), 'text': (160, 192)
}  # fmt: skip
PREFIX = 40  # more, where the system text before the first question is in the sample
CHUNK = 64  # strips, parts or stills that are encoded at a time
STREAMS = {'questions': 13, 'lists': 14, 'forms': 15}  # of random numbers, a phase

Encode = Callable[[int, int, np.ndarray], np.ndarray]
Progress = Callable[[range, str], Iterable[int]]


# ---------------------------------------------------------------- pictures


def tower_batch(
  tokenizer: tokens.Tokenizer, settings: PretrainRun, number: int
) -> dict[str, np.ndarray]:
  """Returns a batch of the tower: pictures, their attributes, captions of half."""
  rng = np.random.default_rng([settings.seed, 11, number])
  size = settings.pretrain.tower_batch
  pictures = [stills.sample_picture(rng) for _ in range(size)]
  captions = [
    [*tokenizer.pieces(picture.caption), tokenizer.eos]
    for picture in pictures[: size // 2]
  ]
  length = settings.model.text.context
  return {
    'pictures': np.stack([picture.frame for picture in pictures]),
    'attributes': np.stack([attributes(picture) for picture in pictures]),
    'captions': tokens.pad([c[:length] for c in captions], length, 'right'),
  }


def attributes(picture: stills.Picture) -> np.ndarray:
  """Returns `float32[colors, 4]`: presence, index of the shape, x and y in [0, 1]."""
  table = np.zeros((len(COLORS), 4), np.float32)
  for (color, shape), center in zip(picture.objects, picture.centers, strict=True):
    table[COLORS.index(color)] = [
      1, SHAPES.index(shape), center[0] / scenes.CANVAS, center[1] / scenes.CANVAS
    ]  # fmt: skip
  return table


class EncodedImages(NamedTuple):
  """What images show, and their visual tokens `float16[N, F + P, D]`."""

  contents: list[Any]
  visual: np.ndarray


def encode_images(
  settings: PretrainRun, encode: Encode, progress: Progress
) -> tuple[EncodedImages, EncodedImages, EncodedImages]:
  """Encodes every strip, part of a strip and still once: the tower is frozen by then.

  Args:
    encode: numbers of a kind and of a chunk, `uint8[B, F, S, S, 3]` -> visual tokens.
    progress: a range and a title -> the range, wrapped in a progress bar.
  """

  def strip(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    scene = scenes.sample_scene(rng)
    return scene, stills.strip_pictures(scene)

  def part(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    scene, phase = scenes.sample_scene(rng), int(rng.integers(scenes.PHASES))
    return (scene, phase), stills.part_pictures(scene, phase)

  def still(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    picture = stills.sample_still(rng)
    return picture, picture.frame[None]

  def encode_kind(kind: int, title: str, sample: Callable, chunks: int):
    contents, visual = [], []
    for number in progress(range(chunks), f'pretrain: encoding {title}'):
      rng = np.random.default_rng([settings.seed, 12, kind, number])
      samples = [sample(rng) for _ in range(CHUNK)]
      contents += [content for content, _ in samples]
      frames = np.stack([frames for _, frames in samples])
      visual.append(encode(kind, number, frames))
    return EncodedImages(contents, np.concatenate(visual))

  count = -(-settings.pretrain.lists_strips // CHUNK)
  return (
    encode_kind(0, 'strips', strip, count),
    encode_kind(1, 'parts', part, -(-count // 4)),
    encode_kind(2, 'stills', still, -(-count // 2)),
  )


def motion_labels(scene: scenes.Scene) -> dict[str, np.ndarray]:
  """Returns what a linear probe has to read off a strip, by color.

  action: `int32[phases, colors]`, index of the predicate; the last index: hidden; -1:
    no object of this color.
  displacement: `float32[STRIP, colors, 3]`, whether the object is visible in this
    picture and in the one before, and how far it has moved since (x, y; 5 pixels).
  """
  numbers = stills.strip_frames()
  action = np.full((scenes.PHASES, len(COLORS)), -1, np.int32)
  displacement = np.zeros((len(numbers), len(COLORS), 3), np.float32)
  for thing in scene.things:
    column = COLORS.index(thing.color)
    action[:, column] = [
      scenes.PREDICATES.index(predicate) if predicate else ACTIONS - 1
      for predicate in thing.predicates
    ]
    centers, visible, _ = scenes.trajectory(thing)
    both = visible[numbers[1:]] & visible[numbers[:-1]]
    moves = np.diff(centers[numbers], axis=0) / 5
    displacement[1:, column, 0] = both
    displacement[1:, column, 1:] = moves * both[:, None]
  return {'action': action, 'displacement': displacement}


# ---------------------------------------------------------------- texts about them


class Task(NamedTuple):
  """One of the four tasks of a batch.

  Attributes:
    name: key of `LENGTHS`.
    share: samples of the task, relative to the batch size of the phase.
    images: what the samples are about.
    rounds: contents of an image -> questions and answers.
  """

  name: str
  share: float
  images: EncodedImages
  rounds: Callable[[Any], Rounds]


@dataclasses.dataclass(frozen=True)
class TextTaskSampler:
  """Samples the batches of the phases that train the language model.

  Attributes:
    strips, parts, stills: as `encode_images` returns them.
  """

  tokenizer: tokens.Tokenizer
  settings: PretrainRun
  strips: EncodedImages
  parts: EncodedImages
  stills: EncodedImages

  def batch(self, phase: str, number: int) -> dict[str, dict[str, np.ndarray]]:
    """Returns ids, loss weights and visual tokens of the samples of four tasks."""
    config = self.settings.pretrain
    late = number >= (1 - config.questions_whole) * config.questions_steps
    full_prompt = phase == 'forms' or (phase == 'questions' and late)
    rng = np.random.default_rng([self.settings.seed, STREAMS[phase], number])
    batch = {}
    for task in self._tasks(phase, rng):
      count = math.ceil(getattr(config, f'{phase}_batch') * task.share)
      indices = rng.integers(len(task.images.contents), size=count)
      contents = [task.images.contents[index] for index in indices]
      samples = self.encode(
        [task.rounds(content) for content in contents],
        task.name,
        lists=phase == 'lists',
        full_prompt=full_prompt,
      )
      if task.name != 'text':
        samples['visual'] = task.images.visual[indices]
      if task.name == 'strip':
        labels = [motion_labels(scene) for scene in contents]
        samples |= {key: np.stack([row[key] for row in labels]) for key in labels[0]}
      batch[task.name] = samples
    return batch

  def _tasks(self, phase: str, rng: np.random.Generator) -> list[Task]:
    def strip(scene: scenes.Scene) -> Rounds:
      if phase == 'lists':
        return stills.list_rounds(scene, rng)
      return stills.strip_rounds(scene, rng, short=6)

    def text(scene: scenes.Scene) -> Rounds:
      if phase == 'forms' and rng.random() < 0.7:
        return texts.answering(scene, rng)
      return texts.reading(scene, rng, judged=0.15 if phase == 'lists' else 0.5)

    def part(content: tuple[scenes.Scene, int]) -> Rounds:
      return stills.part_rounds(*content, rng)

    def still(picture: stills.Picture) -> Rounds:
      return stills.picture_rounds(picture, rng)

    return [
      Task('strip', 1 / 2 if phase == 'forms' else 1, self.strips, strip),
      Task('part', 1 / 4, self.parts, part),
      Task('still', 1 / 4, self.stills, still),
      Task('text', 1 / 2 if phase == 'lists' else 1, self.strips, text),
    ]

  def encode(
    self, conversations: Sequence[Rounds], name: str, *, lists: bool, full_prompt: bool
  ) -> dict[str, np.ndarray]:
    """Returns ids and loss weights, `[B, T]`, of as many rounds as fit, never a part.

    A conversation whose first round does not fit has weights of zero only.

    Args:
      name: of the task.
      full_prompt: with the system text before the first question; it is the same every
        time, and costs a quarter of a step.
    """
    length = LENGTHS[name][not lists] + PREFIX * full_prompt
    ids, weights = [], []
    verdicts = [self.tokenizer.option(word) for word in ('Yes', 'No')]
    for rounds in conversations:
      encoded = tokens.encode_conversation(self.tokenizer, rounds, video=name != 'text')
      row, target = encoded.ids, encoded.target
      if not full_prompt:
        is_text = name == 'text'
        start = len(self._system) if is_text else np.argmax(row == VIDEO)
        row, target = (np.r_[part[0], part[start:]] for part in (row, target))
      ends = np.flatnonzero(row[:length] == self.tokenizer.eos)
      stop = ends[-1] + 1 if len(ends) else 0
      weight = np.where(np.isin(row, verdicts), self.settings.pretrain.judged, 1)
      ids.append(row[:stop])
      weights.append((target * weight).astype(np.float32)[:stop])
    return {
      'ids': tokens.pad(ids, length, 'right', PAD),
      'weight': tokens.pad(weights, length, 'right', 0),
    }

  @functools.cached_property
  def _system(self) -> list[int]:
    return self.tokenizer.encode(prompts.SYSTEM)
