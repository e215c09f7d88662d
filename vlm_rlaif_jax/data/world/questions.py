"""Questions about a clip, with their answers and what is needed to score others.

Two difficulties, by the length of the answer: short ones (attribute, count, direction,
yes/no, order) and long ones (descriptions, before and after, comparisons).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from vlm_rlaif_jax.data.world import language
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.claims import ALL, Claim, claim_question, order_question
from vlm_rlaif_jax.data.world.language import NUMBERS, TIMES
from vlm_rlaif_jax.data.world.scene import MOVES, STAYS, Scene, Thing

Rounds = tuple[tuple[str, str], ...]  # (question, answer), ... of one conversation


@dataclasses.dataclass(frozen=True)
class Qa:
  """A question about a clip, its answer, and what scores another answer.

  Attributes:
    answer_for: a scene -> the answer that would be true of it; None if short.
    span: what a complete answer has to cover, as (object, phase) pairs; () if short.
    phase: which phase an answer without "first", "then" or "finally" speaks of.
  """

  kind: str
  question: str
  answer: str
  answer_for: Callable[[Scene], str] | None = None
  span: tuple[tuple[str, int], ...] = ()
  phase: int = ALL


# ---------------------------------------------------------------- short answers


def short_questions(scene: Scene, rng: np.random.Generator) -> list[Qa]:
  """Returns one question of every short kind that the clip admits, shuffled."""
  coin = rng.random(6) < 0.5
  thing = scene.things[rng.integers(len(scene.things))]
  questions = [
    *_attribute_questions(scene, thing, rng, exists=coin[0]),
    _claim(scene, rng, true=coin[1]),
    *_motion_questions(scene, rng),
    *_order_questions(scene, rng, true=coin[2]),
    *_crossing_questions(scene, rng, true=coin[3]),
  ]
  if thing.turns or rng.random() < 0.3:
    turn = f'Does the {thing.name} change direction?'
    questions.append(_yes_no('turn', turn, thing.turns))
  return [questions[i] for i in rng.permutation(len(questions))]


def _yes_no(kind: str, question: str, true: bool) -> Qa:
  return Qa(kind, question, 'Yes' if true else 'No')


def _attribute_questions(
  scene: Scene, thing: Thing, rng: np.random.Generator, exists: bool
) -> list[Qa]:
  """Color and shape of one object, the count of all, and whether one exists."""
  things, questions = scene.things, []
  constant = not any(p.startswith('becomes') for p in thing.predicates)
  if constant and sum(t.shape == thing.shape for t in things) == 1:
    color = f'What color is the {thing.shape}?'
    questions.append(Qa('color', color, thing.color.capitalize()))
  shape = f'What shape is the {thing.color} object?'
  questions.append(Qa('shape', shape, thing.shape.capitalize()))
  count = NUMBERS[len(things)].capitalize()
  questions.append(Qa('count', 'How many objects are there?', count))
  names = [t.name for t in things]
  name = rng.choice(names) if exists else absent_name(scene, rng)
  questions.append(_yes_no('exist', f'Is there a {name}?', exists))
  return questions


def _claim(scene: Scene, rng: np.random.Generator, true: bool) -> Qa:
  """Whether an object does something; a false claim has the wording of a true one."""
  facts = scene.facts()
  name, phase, predicate = facts[rng.integers(len(facts))]
  if not true:
    predicate = other_predicate(scene, name, phase, rng)
  return _yes_no('claim', claim_question((name, phase, predicate)), true)


def _motion_questions(scene: Scene, rng: np.random.Generator) -> list[Qa]:
  """The direction of a move, the new color of an object, and who does something."""
  facts, questions = scene.facts(), []
  moves = [fact for fact in facts if fact[2] in MOVES]
  if moves:
    name, phase, predicate = moves[rng.integers(len(moves))]
    direction = predicate.split()[1].capitalize()
    question = f'Which way does the {name} move {TIMES[phase]}?'
    questions.append(Qa('direction', question, direction))
  becomes = [fact for fact in facts if fact[2].startswith('becomes')]
  if becomes:
    name, _, predicate = becomes[0]
    color = predicate.split()[1].capitalize()
    question = f'What color does the {name} become?'
    questions.append(Qa('becomes', question, color))
  unique = [
    fact
    for fact in facts
    if sum(f[1:] == fact[1:] for f in facts) == 1 and len(scene.things) > 1
  ]
  if unique:
    name, phase, predicate = unique[rng.integers(len(unique))]
    question = f'Which object {predicate} {TIMES[phase]}?'
    questions.append(Qa('who', question, name.capitalize()))
  return questions


def _order_questions(scene: Scene, rng: np.random.Generator, true: bool) -> list[Qa]:
  """Whether one thing happens before another; none if nothing dates itself."""
  facts = scene.facts()
  pairs = [
    (a, b)
    for a in facts
    for b in facts
    if a[1] < b[1] and happens_once(facts, a) and happens_once(facts, b)
  ]
  if not pairs:
    return []
  earlier, later = pairs[rng.integers(len(pairs))]
  if not true:
    earlier, later = later, earlier
  return [_yes_no('order', order_question(earlier, later), true)]


def _crossing_questions(scene: Scene, rng: np.random.Generator, true: bool) -> list[Qa]:
  """Whether two objects cross; seldom about a scene in which none do."""
  crossings = scene.crossings()
  if len(scene.things) < 2 or not (crossings or rng.random() < 0.15):
    return []
  names = [thing.name for thing in scene.things]
  a, b = sorted(rng.choice(names, 2, replace=False), key=names.index)
  if crossings and true:
    a, b = sorted(next(iter(sorted(crossings, key=sorted))), key=names.index)
  question = f'Do the {a} and the {b} cross?'
  return [_yes_no('cross', question, frozenset((a, b)) in crossings)]


# ---------------------------------------------------------------- long answers


def long_questions(scene: Scene, rng: np.random.Generator) -> list[Qa]:
  """Returns one question of every long kind that the clip admits, shuffled."""
  facts = scene.facts()
  questions: list[Qa] = []

  def add(
    kind: str,
    question: str,
    answer_for: Callable[[Scene], str],
    names: list[str] | None = None,
    phase: int = ALL,
  ) -> None:
    span = tuple(
      (name, when)
      for name, when, _ in facts
      if (names is None or name in names) and phase in (ALL, when)
    )
    questions.append(Qa(kind, question, answer_for(scene), answer_for, span, phase))

  wordings = ['Describe the video in detail.', 'What happens in the video?']
  add('describe', str(rng.choice(wordings)), language.description)

  name = scene.things[rng.integers(len(scene.things))].name
  add(
    'course',
    f'What does the {name} do?',
    lambda other: language.course_sentences(other, [name]),
    [name],
  )

  for kind, shift in (('after', 1), ('before', -1)):
    anchors = [
      fact
      for fact in facts
      if happens_once(facts, fact) and any(f[1] == fact[1] + shift for f in facts)
    ]
    if anchors:
      anchor, phase, predicate = anchors[rng.integers(len(anchors))]
      phase += shift
      add(
        kind,
        f'What happens right {kind} the {anchor} {predicate}?',
        lambda other, phase=phase: language.caption(other, phase),
        phase=phase,
      )

  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    pair = [scene.things[a].name, scene.things[b].name]
    add(
      'compare',
      f'Compare the {pair[0]} and the {pair[1]}.',
      lambda other: language.comparison(other, pair),
      pair,
    )
  return [questions[i] for i in rng.permutation(len(questions))]


# ---------------------------------------------------------------- choices


def happens_once(facts: list[Claim], fact: Claim) -> bool:
  """Returns whether the object does this in one phase only, so that it dates itself."""
  return sum(f[0] == fact[0] and f[2] == fact[2] for f in facts) == 1


def absent_name(scene: Scene, rng: np.random.Generator) -> str:
  """Returns an object that the clip does not show, often one feature off one of its."""
  names = {thing.name for thing in scene.things}
  while True:
    thing = scene.things[rng.integers(len(scene.things))]
    color, shape = thing.color, thing.shape
    if rng.random() < 0.6:
      color = str(rng.choice(list(scenes.COLORS)))
    if rng.random() < 0.6:
      shape = str(rng.choice(scenes.SHAPES))
    if f'{color} {shape}' not in names:
      return f'{color} {shape}'


def other_predicate(
  scene: Scene, name: str, phase: int, rng: np.random.Generator
) -> str:
  """Returns a false predicate for (name, phase), of a kind that true ones have too."""
  true = next(p for n, k, p in scene.facts() if (n, k) == (name, phase))
  while True:
    pool = [MOVES, (STAYS,), scenes.PREDICATES][rng.choice(3, p=[0.5, 0.3, 0.2])]
    predicate = str(rng.choice(pool))
    if predicate not in (true, f'becomes {name.split()[0]}'):
      return predicate
