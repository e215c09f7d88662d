"""What the tiny base model is trained on before it ever sees a video.

The base plays the part of a pretrained image-text model: it knows still pictures,
strips of stills taken one after another, the world's language and how to read and
judge texts. It has words for how an object differs along a strip, but no question of
the video data is asked about strips here.
"""

import dataclasses

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import language, render
from vlm_rlaif_jax.data.world import scene as scenes

Rounds = tuple[tuple[str, str], ...]

ROWS, COLUMNS = ('top', 'middle', 'bottom'), ('left', 'middle', 'right')


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


def sample_picture(rng: np.random.Generator, objects: int = 0) -> Picture:
  """Objects at random places (fractions of a pixel, too).

  Args:
    objects: how many; 0: none to three.
  """
  count = objects or int(rng.choice([0, 1, 2, 3], p=[0.04, 0.26, 0.35, 0.35]))
  picked = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  drawn = tuple(
    (list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in picked
  )
  centres = np.zeros((count, 2))
  frame = np.empty((scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frame[:] = render.BACKGROUND
  for i, (color, shape) in enumerate(drawn):
    centres[i] = _free_spot(rng, centres[:i]) + rng.random(2)
    render.draw(frame, shape, color, centres[i])
  said = picture_caption(drawn, centres) if drawn else 'Nothing is there.'
  return Picture(frame, drawn, centres, said)


def sample_still(rng: np.random.Generator, objects: int = 0) -> tuple[Picture, Rounds]:
  """A picture with something in it, and what is asked about it.

  Args:
    objects: how many; 0: one to three.
  """
  while not (picture := sample_picture(rng, objects)).objects:
    pass
  rounds = _picture_rounds(rng, picture)
  return picture, tuple(rounds[i] for i in rng.permutation(len(rounds)))


def sample_album(
  rng: np.random.Generator, pictures: int, objects: int = 0
) -> tuple[np.ndarray, Rounds]:
  """The same objects, scattered anew in each of a few pictures.

  Where each is, picture by picture, and how that differs: every picture has to be read,
  so that what a strip asks, one word for many pictures, has something to stand on.

  Args:
    objects: how many; 0: one to three.
  """
  count = objects or int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
  picked = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  drawn = [(list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in picked]
  centres = np.empty((pictures, count, 2))
  for picture in range(pictures):
    for index in range(count):
      centres[picture, index] = _free_spot(rng, centres[picture, :index])
      if picture and rng.random() < 0.35:  # some objects keep their place
        kept = centres[picture - 1, index]
        if _is_free(kept, centres[picture, :index]):
          centres[picture, index] = kept
  shown = rng.random((pictures, count)) > 0.12
  frames = np.empty((pictures, scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frames[:] = render.BACKGROUND
  for picture, frame in enumerate(frames):
    for index, (color, shape) in enumerate(drawn):
      if shown[picture, index]:
        render.draw(frame, shape, color, centres[picture, index])
  rounds = []
  for index, (color, shape) in enumerate(drawn):
    seen, way = shown[:, index], centres[:, index]
    where = [place(c) if there else 'gone' for c, there in zip(way, seen, strict=True)]
    rounds.append(
      (f'Where is the {color} {shape}?', language.sentence(', '.join(where)))
    )
    differs = [
      _difference(way[k - 1], way[k], seen[k - 1], seen[k]) for k in range(1, pictures)
    ]
    rounds.append(
      (f'How does the {color} {shape} differ?', language.sentence(', '.join(differs)))
    )
  return frames, tuple(rounds[i] for i in rng.permutation(len(rounds)))


def _difference(before, after, was: bool, there: bool) -> str:
  """How one object differs between two pictures, by its largest displacement."""
  if not there:
    return 'gone'
  if not was:
    return 'appears'
  dx, dy = after - before
  if max(abs(dx), abs(dy)) < 2:
    return scenes.STAYS
  if abs(dx) > abs(dy):
    return 'moves left' if dx < 0 else 'moves right'
  return 'moves up' if dy < 0 else 'moves down'


def picture_caption(objects, centres) -> str:
  """'A red circle at the top left and a blue ring at the right.'"""
  parts = [
    f'a {color} {shape} at the {place(centre)}'
    for (color, shape), centre in zip(objects, centres, strict=True)
  ]
  return language.sentence(' and '.join(parts))


def _picture_rounds(rng, picture: Picture) -> list[tuple[str, str]]:
  objects = picture.objects
  rounds = [('What is in the picture?', picture.caption)]
  index = rng.integers(len(objects))
  color, shape = objects[index]
  where = place(picture.centres[index]).capitalize()
  rounds.append((f'Where is the {color} {shape}?', where))
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
  rng: np.random.Generator,
  pictures: int,
  part: bool = False,
  looks: int = 8,
  objects: int = 0,
) -> tuple[np.ndarray, Rounds]:
  """Stills of one scene in order, `uint8[K, S, S, 3]`, and how its objects differ.

  Args:
    part: of one phase of the scene instead of the whole.
    looks: short questions about the whole, before those about all that objects do.
    objects: of the scene; 0: one to three.
  """
  scene = scenes.sample_scene(rng, objects)
  start, stop = 0, scenes.FRAMES
  phase = int(rng.integers(scenes.PHASES))
  if part:
    start = phase * scenes.PHASE_FRAMES
    stop = start + scenes.PHASE_FRAMES
  shown = np.rint(np.linspace(start, stop - 1, pictures)).astype(int)
  frames = render.render(scene, shown)
  if not part:
    return frames, (*_looks(scene, rng, looks), *_courses(scene, rng))
  rounds = _part_rounds(scene, phase, rng)
  return frames, tuple(rounds[i] for i in rng.permutation(len(rounds)))


def _looks(scene: scenes.Scene, rng, count: int) -> list[tuple[str, str]]:
  """Short questions, each about one object in one part of the strip."""
  facts = scene.facts()
  unique = [f for f in facts if sum(g[1:] == f[1:] for g in facts) == 1]
  order = rng.permutation(len(facts))
  rounds = {}
  for number in range(count):
    name, phase, predicate = facts[order[number % len(facts)]]
    kind = rng.choice(['how', 'whether', 'which'], p=[0.45, 0.45, 0.1])
    if kind == 'how':
      asked = f'In the {PARTS[phase]} pictures how does the {name} differ?'
      rounds[asked] = language.sentence(predicate)
    elif kind == 'whether':
      true = rng.random() < 0.5
      said = predicate if true else language.other_predicate(scene, name, phase, rng)
      asked = f'In the {PARTS[phase]} pictures the {name} {said}?'
      rounds[asked] = 'Yes' if true else 'No'
    elif unique and len(scene.things) > 1:
      name, phase, predicate = unique[rng.integers(len(unique))]
      asked = f'In the {PARTS[phase]} pictures which one {predicate}?'
      rounds[asked] = name.capitalize()
  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    a, b = scene.things[a].name, scene.things[b].name
    meet = 'Yes' if frozenset((a, b)) in scene.crossings() else 'No'
    if meet == 'Yes' or rng.random() < 0.3:
      rounds[f'Do the {a} and the {b} meet in a picture?'] = meet
  listed = list(rounds.items())
  return [listed[i] for i in rng.permutation(len(listed))]


def _courses(scene: scenes.Scene, rng) -> list[tuple[str, str]]:
  """All that each object does; asked last, or the short questions could be read off."""
  rounds = []
  for thing in scene.things:
    said = ', '.join(predicate or 'gone' for predicate in thing.predicates)
    rounds.append((f'How does the {thing.name} differ?', language.sentence(said)))
  return [rounds[i] for i in rng.permutation(len(rounds))]


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


FACTS = 7  # questions about one narrative


def sample_text(rng: np.random.Generator, objects: int = 0) -> Rounds:
  """Reading: a narrative, then questions about it, judgements of claims and answers.

  Args:
    objects: of the scene; 0: one to three.
  """
  scene = scenes.sample_scene(rng, objects)
  story = language.narrative(scene)
  asked = language.long_questions(scene, rng)
  kind = rng.choice(['read', 'facts', 'claims', 'options'], p=[0.12, 0.4, 0.42, 0.06])
  if kind == 'claims':
    return judge_claims(scene, asked[0], rng, story, rounds=4)
  if kind == 'options':
    return (judge_options(scene, asked[0], rng, story),)
  if kind == 'read':
    rounds = [(qa.question, qa.answer) for qa in asked[:3]]
  else:
    rounds = list(dict(_fact_question(scene, rng) for _ in range(FACTS)).items())
  (question, answer), *rest = rounds
  return ((f'{story}\n{question}', answer), *rest)


def _fact_question(scene, rng) -> tuple[str, str]:
  """'What does the red circle do in clip 1?'; 'Does the red circle stay at first?'."""
  facts = scene.facts()
  name, phase, said = facts[rng.integers(len(facts))]
  if rng.random() < 0.35:
    return f'What does the {name} do in clip {phase + 1}?', language.sentence(said)
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
    said.append(sample_still(rng)[1])
    said.append(sample_strip(rng, 12)[1])
    said.append(sample_strip(rng, 4, part=True)[1])
  return said
