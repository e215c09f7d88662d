"""What the tiny base model is trained on before it ever sees a video.

The base plays the part of a pretrained image-text model: it knows still pictures,
albums of unrelated stills, strips of stills taken one after another, the world's
language and how to read and judge texts. It has words for how an object differs from
one still of a strip to the next, but no question of the video data is asked here.
"""

import dataclasses

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import language, render
from vlm_rlaif_jax.data.world import scene as scenes

Rounds = tuple[tuple[str, str], ...]

ROWS, COLUMNS = ('top', 'middle', 'bottom'), ('left', 'middle', 'right')
ORDINALS = (
  'first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth',
  'ninth', 'tenth', 'eleventh', 'twelfth',
)  # fmt: skip


def place(centre) -> str:
  """A centre (pixels) -> 'top left', 'left', 'middle', ..."""
  column, row = (int(min(v, scenes.CANVAS - 1) * 3 // scenes.CANVAS) for v in centre)
  words = [
    word
    for word in dict.fromkeys((ROWS[row], COLUMNS[column]))
    if word != 'middle' or row == column == 1
  ]
  return ' '.join(words)


@dataclasses.dataclass(frozen=True)
class Picture:
  """One still: `uint8[S, S, 3]`, (color, shape) of each object, centres, caption."""

  frame: np.ndarray
  objects: tuple[tuple[str, str], ...]
  centres: np.ndarray
  caption: str


@dataclasses.dataclass(frozen=True)
class Album:
  """Some stills of the same objects: `frames uint8[K, S, S, 3]` and what is asked."""

  frames: np.ndarray
  rounds: Rounds
  first: Picture


def sample_picture(rng: np.random.Generator) -> Picture:
  """None to three objects at random places (fractions of a pixel, too)."""
  count = int(rng.choice([0, 1, 2, 3], p=[0.04, 0.26, 0.35, 0.35]))
  picked = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  objects = tuple(
    (list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in picked
  )
  centres = np.zeros((count, 2))
  frame = np.empty((scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frame[:] = render.BACKGROUND
  for i, (color, shape) in enumerate(objects):
    centres[i] = _free_spot(rng, centres[:i]) + rng.random(2)
    render.draw(frame, shape, color, centres[i])
  said = picture_caption(objects, centres) if objects else 'Nothing is there.'
  return Picture(frame, objects, centres, said)


def sample_album(rng: np.random.Generator, pictures: int) -> Album:
  """The same one to three objects, scattered anew in each of a few pictures."""
  count = int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
  picked = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  objects = [(list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in picked]
  centres = np.empty((pictures, count, 2))
  for picture in range(pictures):
    for index in range(count):
      centres[picture, index] = _free_spot(rng, centres[picture, :index])
      if picture and rng.random() < 0.35:  # some objects keep their place
        kept = centres[picture - 1, index]
        if _is_free(kept, centres[picture, :index]):
          centres[picture, index] = kept
  shown = rng.random((pictures, count)) > (0.12 if pictures > 1 else 0.0)
  recolored = rng.random(count) < (0.15 if pictures > 1 else 0.0)
  change_at = rng.integers(1, max(pictures, 2), count)
  unused = [c for c in scenes.COLORS if c not in {c for c, _ in objects}]
  new_colors = rng.permutation(unused)

  frames = np.empty((pictures, scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frames[:] = render.BACKGROUND
  colors = []
  for picture in range(pictures):
    now = [
      str(new_colors[i]) if recolored[i] and picture >= change_at[i] else color
      for i, (color, _) in enumerate(objects)
    ]
    colors.append(now)
    for i, (_, shape) in enumerate(objects):
      if shown[picture, i]:
        render.draw(frames[picture], shape, now[i], centres[picture, i])
  rounds = (
    _picture_rounds(rng, objects, centres[0])
    if pictures == 1
    else _album_rounds(rng, objects, centres, shown, colors)
  )
  said = tuple(rounds[i] for i in rng.permutation(len(rounds)))
  return Album(
    frames, said, Picture(frames[0], tuple(objects), centres[0], rounds[0][1])
  )


def picture_caption(objects, centres) -> str:
  """'A red circle at the top left and a blue ring at the right.'"""
  parts = [
    f'a {color} {shape} at the {place(centre)}'
    for (color, shape), centre in zip(objects, centres, strict=True)
  ]
  return language.sentence(' and '.join(parts))


def _picture_rounds(rng, objects, centres):
  rounds = [('What is in the picture?', picture_caption(objects, centres))]
  index = rng.integers(len(objects))
  color, shape = objects[index]
  rounds.append((f'Where is the {color} {shape}?', place(centres[index]).capitalize()))
  if sum(s == shape for _, s in objects) == 1:
    rounds.append((f'What color is the {shape}?', color.capitalize()))
  rounds.append((f'What shape is the {color} object?', shape.capitalize()))
  number = language.NUMBERS[len(objects)].capitalize()
  rounds.append(('How many objects are there?', number))
  scene = scenes.Scene(
    tuple(scenes.Thing(c, s, (0, 0), ('',) * scenes.PHASES) for c, s in objects)
  )
  there = rng.random() < 0.5
  name = f'{color} {shape}' if there else language.absent_name(scene, rng)
  rounds.append((f'Is there a {name}?', 'Yes' if there else 'No'))
  return rounds


def _album_rounds(rng, objects, centres, shown, colors):
  """Questions that need several pictures: where in each, and what differs."""
  rounds = []
  for index in rng.permutation(len(objects))[: 2 if len(centres) <= 4 else 1]:
    color, shape = objects[index]
    where = [
      place(centre) if there else 'gone'
      for centre, there in zip(centres[:, index], shown[:, index], strict=True)
    ]
    rounds.append(
      (
        f'Where is the {color} {shape} in each picture?',
        language.sentence(', '.join(where)),
      )
    )
    changes = [
      _difference(
        centres[k - 1, index],
        centres[k, index],
        shown[k - 1, index],
        shown[k, index],
        colors[k - 1][index],
        colors[k][index],
      )
      for k in range(1, len(centres))
    ]
    rounds.append(
      (
        f'How is the {color} {shape} different from picture to picture?',
        language.sentence(', '.join(changes)),
      )
    )
  picture = int(rng.integers(len(centres)))
  present = [
    (objects[i][1], colors[picture][i], centres[picture, i])
    for i in range(len(objects))
    if shown[picture, i]
  ]
  said = [((color, shape), centre) for shape, color, centre in present]
  rounds.append(
    (
      f'What is in the {ORDINALS[picture]} picture?',
      picture_caption(*zip(*said, strict=True)) if said else 'Nothing is there.',
    )
  )
  return rounds


def _difference(before, after, was, there, old, new) -> str:
  """How one object differs between two pictures, by its largest displacement."""
  if not there:
    return 'gone'
  if not was:
    return 'back'
  dx, dy = after - before
  if max(abs(dx), abs(dy)) < 2:
    return f'now {new}' if old != new else 'the same'
  if abs(dx) > abs(dy):
    return 'further left' if dx < 0 else 'further right'
  return 'further up' if dy < 0 else 'further down'


def _free_spot(rng, others):
  for _ in range(50):
    centre = rng.integers(scenes.LOW, scenes.HIGH + 1, 2)
    if _is_free(centre, others):
      return centre
  return centre


def _is_free(centre, others) -> bool:
  return all(np.linalg.norm(centre - o) > 2 * scenes.RADIUS + 1 for o in others)


# ---------------------------------------------------------------- strips

PARTS = ('first', 'middle', 'last')


def sample_strip(
  rng: np.random.Generator, pictures: int, part: bool = False
) -> tuple[np.ndarray, Rounds]:
  """Stills of one scene in order, `uint8[K, S, S, 3]`, and how its objects differ.

  Args:
    part: of one phase of the scene instead of the whole.
  """
  scene = scenes.sample_scene(rng)
  start, stop = 0, scenes.FRAMES
  phase = int(rng.integers(scenes.PHASES))
  if part:
    start = phase * scenes.PHASE_FRAMES
    stop = start + scenes.PHASE_FRAMES
  shown = np.rint(np.linspace(start, stop - 1, pictures)).astype(int)
  frames = render.render(scene, shown)
  rounds = _part_rounds(scene, phase, rng) if part else _strip_rounds(scene, rng)
  return frames, tuple(rounds[i] for i in rng.permutation(len(rounds)))


def _strip_rounds(scene: scenes.Scene, rng) -> list[tuple[str, str]]:
  facts = scene.facts()
  rounds = []
  for thing in scene.things:
    said = ', '.join(predicate or 'gone' for predicate in thing.predicates)
    rounds.append((f'How does the {thing.name} differ?', language.sentence(said)))
  for _ in range(3):
    name, phase, predicate = facts[rng.integers(len(facts))]
    true = rng.random() < 0.5
    said = predicate if true else language.other_predicate(scene, name, phase, rng)
    asked = f'In the {PARTS[phase]} pictures the {name} {said}?'
    rounds.append((asked, 'Yes' if true else 'No'))
  unique = [f for f in facts if sum(g[1:] == f[1:] for g in facts) == 1]
  if unique and len(scene.things) > 1:
    name, phase, predicate = unique[rng.integers(len(unique))]
    asked = f'In the {PARTS[phase]} pictures which one {predicate}?'
    rounds.append((asked, name.capitalize()))
  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    a, b = scene.things[a].name, scene.things[b].name
    meet = 'Yes' if frozenset((a, b)) in scene.crossings() else 'No'
    if meet == 'Yes' or rng.random() < 0.3:
      rounds.append((f'Do the {a} and the {b} meet in a picture?', meet))
  return rounds


def _part_rounds(scene: scenes.Scene, phase: int, rng) -> list[tuple[str, str]]:
  seen = [thing for thing in scene.things if thing.predicates[phase]]
  if not seen:
    return [('What is in the pictures?', 'Nothing is there.')]
  said = ' and '.join(f'a {t.name} {t.predicates[phase]}' for t in seen)
  rounds = [('What is in the pictures?', language.sentence(said))]
  thing = seen[rng.integers(len(seen))]
  answer = language.sentence(thing.predicates[phase])
  rounds.append((f'How does the {thing.name} differ?', answer))
  return rounds


# ---------------------------------------------------------------- texts alone


def sample_text(rng: np.random.Generator) -> Rounds:
  """Reading: a narrative, then questions about it, judgements of claims and answers."""
  scene = scenes.sample_scene(rng)
  story = language.narrative(scene)
  asked = language.long_questions(scene, rng)
  kind = rng.choice(
    ['read', 'short', 'facts', 'claims', 'options'], p=[0.14, 0.1, 0.2, 0.5, 0.06]
  )
  if kind == 'read':
    (first, *rest) = asked[:3]
    return (
      (f'{story}\n{first.question}', first.answer),
      *((qa.question, qa.answer) for qa in rest),
    )
  if kind == 'short':
    qas = language.short_questions(scene, rng)
    qas = [qa for qa in qas if qa.kind not in ('cross', 'turn', 'count', 'exist')][:5]
    (first, *rest) = qas
    return (
      (f'{story}\n{first.question}', first.answer),
      *((qa.question, qa.answer) for qa in rest),
    )
  if kind == 'facts':
    (question, answer), *rest = [_fact_question(scene, rng) for _ in range(5)]
    return ((f'{story}\n{question}', answer), *rest)
  if kind == 'claims':
    return judge_claims(scene, asked[0], rng, story, rounds=3)
  return (judge_options(scene, asked[0], rng, story),)


def _fact_question(scene, rng) -> tuple[str, str]:
  """'Does the red circle stay at first?', as often true as not."""
  facts = scene.facts()
  name, phase, said = facts[rng.integers(len(facts))]
  true = rng.random() < 0.5
  if not true:
    thing = next(thing for thing in scene.things if thing.name == name)
    said = scenes.another_predicate(rng, thing, said)
  return language.claim_question((name, phase, said)), 'Yes' if true else 'No'


def judge_options(scene, qa: language.Qa, rng, story: str) -> tuple[str, str]:
  """Two answers of different quality, and which is better."""
  while True:
    rates = rng.choice([0.0, 0.2, 0.5], 2, p=[0.4, 0.35, 0.25])
    answers = [careless_answer(scene, qa, rng, rate) for rate in rates]
    a, b = (
      language.score_answer(scene.facts(), qa.span, qa.phase, answer).quality
      for answer in answers
    )
    if a != b:
      text = prompts.load('tiny_judge_options').format(
        narrative=story, question=qa.question, a=answers[0], b=answers[1]
      )
      return text.strip(), 'A' if a > b else 'B'


def judge_claims(scene, qa: language.Qa, rng, story: str, rounds: int) -> Rounds:
  """Beginnings of answers, and whether their last statements are right; half are.

  The narrative is shown in the first round only.
  """
  return tuple(
    _judge_claim(scene, qa, rng, '' if index else story) for index in range(rounds)
  )


def _judge_claim(scene, qa: language.Qa, rng, story: str) -> tuple[str, str]:
  wanted = rng.random() < 0.5
  score = lambda text: language.score_answer(scene.facts(), qa.span, qa.phase, text)
  while True:
    answer = careless_answer(scene, qa, rng, rng.choice([0.0, 0.3, 0.6]))
    starts = language.statements(answer)
    index = rng.integers(len(starts))
    before = score(starts[index - 1]).invented if index else 0
    if (score(starts[index]).invented <= before) == wanted:
      break
  text = prompts.load('tiny_judge_claims').format(
    narrative=story, question=qa.question, claim=starts[index]
  )
  return text.strip(), 'Yes' if wanted else 'No'


def careless_answer(scene, qa: language.Qa, rng, rate: float) -> str:
  """An answer in which each fact is replaced with probability `rate`."""
  assert qa.say is not None
  for _ in range(20):
    wrong = scenes.altered(
      scene,
      rng,
      any_predicate=rate,
      phantom=rate / 4 if qa.kind in ('describe', 'after', 'before') else 0.0,
      omission=rate / 4 if qa.kind in ('describe', 'after', 'before') else 0.0,
    )
    if answer := qa.say(wrong):
      return answer
  return qa.answer


def sample_conversations(rng: np.random.Generator, count: int) -> list[Rounds]:
  """Text for the tokenizer: everything that is ever said in the world."""
  said: list[Rounds] = []
  for _ in range(count):
    scene = scenes.sample_scene(rng)
    for qa in language.short_questions(scene, rng) + language.long_questions(
      scene, rng
    ):
      said.append(((qa.question, qa.answer),))
    said.append(sample_text(rng))
    said.append(sample_album(rng, 1).rounds)
    said.append(sample_album(rng, 4).rounds)
    said.append(sample_album(rng, 12).rounds)
    said.append(sample_strip(rng, 12)[1])
    said.append(sample_strip(rng, 4, part=True)[1])
  return said
