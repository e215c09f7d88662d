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


def place(center) -> str:
  """A center (pixels) -> 'top left', 'left', 'middle', ..."""
  column, row = (int(min(v, scenes.CANVAS - 1) * 3 // scenes.CANVAS) for v in center)
  words = [
    word
    for word in dict.fromkeys((ROWS[row], COLUMNS[column]))
    if word != 'middle' or row == column == 1
  ]
  return ' '.join(words)


@dataclasses.dataclass(frozen=True)
class Picture:
  """One still: `uint8[S, S, 3]`, (color, shape) of each object, centers, caption."""

  frame: np.ndarray
  objects: tuple[tuple[str, str], ...]
  centers: np.ndarray
  caption: str


def sample_picture(rng: np.random.Generator) -> Picture:
  """None to three objects at random places (fractions of a pixel, too)."""
  count = int(rng.choice([0, 1, 2, 3], p=[0.04, 0.26, 0.35, 0.35]))
  picked = sorted(rng.choice(len(scenes.COLORS), count, replace=False))
  drawn = tuple(
    (list(scenes.COLORS)[i], str(rng.choice(scenes.SHAPES))) for i in picked
  )
  centers = np.zeros((count, 2))
  frame = np.empty((scenes.CANVAS, scenes.CANVAS, 3), np.uint8)
  frame[:] = render.BACKGROUND
  for i, (color, shape) in enumerate(drawn):
    centers[i] = _free_spot(rng, centers[:i]) + rng.random(2)
    render.draw(frame, shape, color, centers[i])
  said = picture_caption(drawn, centers) if drawn else 'Nothing is there.'
  return Picture(frame, drawn, centers, said)


def sample_still(rng: np.random.Generator) -> Picture:
  """A picture with something in it."""
  while not (picture := sample_picture(rng)).objects:
    pass
  return picture


def picture_rounds(picture: Picture, rng: np.random.Generator) -> Rounds:
  """What is asked about a picture with something in it."""
  objects = picture.objects
  rounds = [('What is in the picture?', picture.caption)]
  index = rng.integers(len(objects))
  color, shape = objects[index]
  where = place(picture.centers[index]).capitalize()
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
  return _shuffled(rounds, rng)


def picture_caption(objects, centers) -> str:
  """'A red circle at the top left and a blue ring at the right.'"""
  parts = [
    f'a {color} {shape} at the {place(center)}'
    for (color, shape), center in zip(objects, centers, strict=True)
  ]
  return language.sentence(' and '.join(parts))


def _shuffled(rounds, rng) -> tuple:
  return tuple(rounds[i] for i in rng.permutation(len(rounds)))


def _free_spot(rng, others):
  for _ in range(50):
    center = rng.integers(scenes.LOW, scenes.HIGH + 1, 2)
    if _is_free(center, others):
      return center
  return center


def _is_free(center, others) -> bool:
  return all(np.linalg.norm(center - o) > 2 * scenes.RADIUS + 1 for o in others)


# ---------------------------------------------------------------- strips

STRIP = 12  # pictures of a whole scene
PARTS = ('first', 'middle', 'last')  # of a strip, one a phase
PART = 4  # pictures of one phase


def strip_pictures(scene: scenes.Scene) -> np.ndarray:
  """Stills of a scene in order, `uint8[STRIP, S, S, 3]`."""
  return render.render(scene, shown())


def shown() -> np.ndarray:
  """The numbers of the frames that are a strip's pictures, `int[STRIP]`."""
  return np.rint(np.linspace(0, scenes.FRAMES - 1, STRIP)).astype(int)


def part_pictures(scene: scenes.Scene, phase: int) -> np.ndarray:
  """The same of one phase, `uint8[PART, S, S, 3]`."""
  first = phase * scenes.PHASE_FRAMES
  last = first + scenes.PHASE_FRAMES - 1
  return render.render(scene, np.rint(np.linspace(first, last, PART)).astype(int))


def list_rounds(scene: scenes.Scene, rng: np.random.Generator) -> Rounds:
  """All that differs along a strip in one answer, after a few short questions.

  Most of its tokens are facts, so a list teaches more a step than anything else here.
  """
  return (*_looks(scene, rng, 4 - len(scene.things)), _listed(scene, rng))


def strip_rounds(scene: scenes.Scene, rng: np.random.Generator, looks: int) -> Rounds:
  """Short questions about a strip, then all that its objects do.

  In this order, or the short questions could be read off.
  """
  rounds = _looks(scene, rng, looks)
  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    a, b = scene.things[a].name, scene.things[b].name
    meet = 'Yes' if frozenset((a, b)) in scene.crossings() else 'No'
    if meet == 'Yes' or rng.random() < 0.3:
      asked = (f'Do the {a} and the {b} meet in a picture?', meet)
      rounds.insert(rng.integers(len(rounds) + 1), asked)
  if rng.random() < 0.4:
    return (*rounds, _listed(scene, rng))
  courses = [
    (f'How does the {thing.name} differ?', language.sentence(_course(thing)))
    for thing in scene.things
  ]
  return (*rounds, *_shuffled(courses, rng))


def part_rounds(scene: scenes.Scene, phase: int, rng: np.random.Generator) -> Rounds:
  """What is asked about the pictures of one phase."""
  seen = [thing for thing in scene.things if thing.predicates[phase]]
  if not seen:
    return (('What is in the pictures?', 'Nothing is there.'),)
  said = ' and '.join(f'a {t.name} {t.predicates[phase]}' for t in seen)
  rounds = [('What is in the pictures?', language.sentence(said))]
  thing = seen[rng.integers(len(seen))]
  answer = language.sentence(thing.predicates[phase])
  rounds.append((f'How does the {thing.name} differ?', answer))
  return _shuffled(rounds, rng)


def _listed(scene: scenes.Scene, rng) -> tuple[str, str]:
  """'Red circle moves left, stays, gone. Blue ring ...'; objects in any order."""
  said = [language.sentence(f'{t.name} {_course(t)}') for t in scene.things]
  return 'How do they differ?', ' '.join(_shuffled(said, rng))


def _course(thing: scenes.Thing) -> str:
  return ', '.join(predicate or 'gone' for predicate in thing.predicates)


def _looks(scene: scenes.Scene, rng, count: int) -> list[tuple[str, str]]:
  """Short questions, each about what one object does in one part; none of it twice."""
  facts = scene.facts()
  rounds = []
  for index in rng.permutation(len(facts))[:count]:
    name, phase, predicate = facts[index]
    when = f'In the {PARTS[phase]} pictures'
    alone = sum(fact[1:] == (phase, predicate) for fact in facts) == 1
    kind = rng.choice(['how', 'whether', 'which'], p=[0.45, 0.45, 0.1])
    if kind == 'whether':
      true = rng.random() < 0.5
      said = predicate if true else language.other_predicate(scene, name, phase, rng)
      rounds.append((f'{when} the {name} {said}?', 'Yes' if true else 'No'))
    elif kind == 'which' and alone and len(scene.things) > 1:
      rounds.append((f'{when} which one {predicate}?', name.capitalize()))
    else:
      asked = f'{when} how does the {name} differ?'
      rounds.append((asked, language.sentence(predicate)))
  return rounds


# ---------------------------------------------------------------- texts alone


def reading(scene: scenes.Scene, rng: np.random.Generator, judged: float) -> Rounds:
  """A narrative, then questions about it or judgments of claims and answers.

  Args:
    judged: how often it is judged; else, what is asked needs looking up only.
  """
  story = language.narrative(scene)
  asked = language.long_questions(scene, rng)
  if rng.random() < judged:
    if rng.random() < 0.1:
      return (judge_options(scene, asked[0], rng, story),)
    return judge_claims(scene, asked[0], rng, story, rounds=6)
  kind = rng.choice(['facts', 'list', 'read'], p=[0.4, 0.4, 0.2])
  count = {'facts': 9, 'list': 4, 'read': 2}[kind]
  facts = scene.facts()
  rounds = [
    _fact_question(scene, facts[i], rng) for i in rng.permutation(len(facts))[:count]
  ]
  if kind == 'list':
    rounds.append(_listed(scene, rng))
  elif kind == 'read':
    rounds += [(qa.question, qa.answer) for qa in asked[:2]]
  (question, answer), *rest = rounds
  return ((f'{story}\n{question}', answer), *rest)


def answering(scene: scenes.Scene, rng: np.random.Generator) -> Rounds:
  """A narrative, which objects cross, and what the world asks about clips.

  So each form of question is known to have its form of answer before any video is asked
  about; without that, what is tuned last was answered to everything.
  """
  asked = language.short_questions(scene, rng) + language.long_questions(scene, rng)
  (question, answer), *rest = _shuffled([(qa.question, qa.answer) for qa in asked], rng)
  met = [f'The {a} and the {b} cross.' for a, b in map(sorted, scene.crossings())]
  story = '\n'.join([language.narrative(scene), *sorted(met), question])
  return ((story, answer), *rest)


def _fact_question(scene, fact: language.Claim, rng) -> tuple[str, str]:
  """'What does the red circle do in clip 1?'; 'Does the red circle stay at first?'."""
  name, phase, said = fact
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
    starts = prompts.statements(answer)
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
    said.append(reading(scene, rng, judged=0.5))
    said.append(picture_rounds(sample_still(rng), rng))
    said.append(strip_rounds(scene, rng, looks=8))
    said.append(part_rounds(scene, int(rng.integers(scenes.PHASES)), rng))
  return said
