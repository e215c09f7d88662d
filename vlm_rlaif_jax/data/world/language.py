"""What can be asked and said about a clip, and whether what was said is true.

Two difficulties, by the length of the answer: short ones (attribute, count, direction,
yes/no, order) and long ones (descriptions, before and after, comparisons). Every answer
can be read back into claims, `(object, phase, predicate)`, so that a free text is
scored exactly: which claims are right, which are invented, which facts are missing.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import MOVES, PHASES, STAYS, Scene

NUMBERS = ('zero', 'one', 'two', 'three')
OPENERS = ('first', 'then', 'finally')  # phase 0, 1, 2 in an answer
TIMES = ('at first', 'in the middle', 'at the end')  # the same in a question
EXISTS = 'exists'  # the predicate of a bare mention
ALL = -1  # the phase of a claim that names none

Claim = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Qa:
  """A question about a clip, and what is needed to answer it and to score an answer.

  Attributes:
    say: a scene -> the answer that would be true of it; of another scene than the
      clip's own, it gives a wrong answer in the right words.
    span: what a complete answer has to cover, as (object, phase) pairs; () if short.
    phase: which phase an answer without "first", "then" or "finally" speaks of.
  """

  kind: str
  question: str
  answer: str
  say: Callable[[Scene], str] | None = None
  span: tuple[tuple[str, int], ...] = ()
  phase: int = ALL


# ---------------------------------------------------------------- saying things


def base_form(predicate: str) -> str:
  """'moves left' -> 'move left'."""
  verb, _, rest = predicate.partition(' ')
  verb = {'vanishes': 'vanish', 'stays': 'stay'}.get(verb, verb.removesuffix('s'))
  return f'{verb} {rest}'.strip()


def sentence(text: str) -> str:
  return text[0].upper() + text[1:] + '.'


def course(name: str, predicates: tuple[str, ...]) -> str:
  """'First the red circle moves left, then it stays, finally it vanishes.'"""
  parts, subject = [], f'the {name}'
  for phase, predicate in enumerate(predicates):
    if predicate:
      parts.append(f'{OPENERS[phase]} {subject} {predicate}')
      subject = 'it'
  return sentence(', '.join(parts))


def inventory(names: list[str]) -> str:
  """'There are two objects: a red circle and a blue ring.'"""
  listed = ' and '.join(f'a {name}' for name in names)
  count = NUMBERS[len(names)]
  noun = 'is one object' if len(names) == 1 else f'are {count} objects'
  return sentence(f'there {noun}: {listed}')


def courses(scene: Scene, names: list[str]) -> str:
  return ' '.join(
    course(thing.name, thing.predicates)
    for thing in scene.things
    if thing.name in names
  )


def description(scene: Scene) -> str:
  names = [thing.name for thing in scene.things]
  return f'{inventory(names)} {courses(scene, names)}'


def narrative(scene: Scene) -> str:
  """The captions of clips of one phase each, as the label stage joins them."""
  return prompts.narrative([caption(scene, phase) for phase in range(PHASES)])


def caption(scene: Scene, phase: int) -> str:
  """What a clip of one phase shows: 'The red circle moves left. ...'"""
  said = [
    sentence(f'the {thing.name} {thing.predicates[phase]}')
    for thing in scene.things
    if thing.predicates[phase]
  ]
  return ' '.join(said) or 'Nothing is there.'


# ---------------------------------------------------------------- asking


def short_questions(scene: Scene, rng: np.random.Generator) -> list[Qa]:
  """One question of every short kind that the clip admits, in random order."""
  things, facts = scene.things, scene.facts()
  names = [thing.name for thing in things]
  asked: list[Qa] = []

  def ask(kind, question, answer):
    asked.append(Qa(kind, question, answer))

  def ask_yes_no(kind, question_if, truth):
    ask(kind, question_if(truth), 'Yes' if truth else 'No')

  coin = rng.random(6) < 0.5
  thing = things[rng.integers(len(things))]
  constant = not any(p.startswith('becomes') for p in thing.predicates)
  if constant and sum(t.shape == thing.shape for t in things) == 1:
    ask('color', f'What color is the {thing.shape}?', thing.color.capitalize())
  ask('shape', f'What shape is the {thing.color} object?', thing.shape.capitalize())
  ask('count', 'How many objects are there?', NUMBERS[len(things)].capitalize())
  ask_yes_no(
    'exist',
    lambda true: (
      f'Is there a {rng.choice(names) if true else absent_name(scene, rng)}?'
    ),
    coin[0],
  )

  name, phase, predicate = facts[rng.integers(len(facts))]
  said = predicate if coin[1] else other_predicate(scene, name, phase, rng)
  ask_yes_no('claim', lambda _: claim_question((name, phase, said)), coin[1])

  moves = [fact for fact in facts if fact[2] in MOVES]
  if moves:
    name, phase, predicate = moves[rng.integers(len(moves))]
    ask(
      'direction',
      f'Which way does the {name} move {TIMES[phase]}?',
      predicate.split()[1].capitalize(),
    )
  becomes = [fact for fact in facts if fact[2].startswith('becomes')]
  if becomes:
    name, _, predicate = becomes[0]
    ask(
      'becomes',
      f'What color does the {name} become?',
      predicate.split()[1].capitalize(),
    )

  unique = [
    fact
    for fact in facts
    if sum(f[1:] == fact[1:] for f in facts) == 1 and len(things) > 1
  ]
  if unique:
    name, phase, predicate = unique[rng.integers(len(unique))]
    ask('who', f'Which object {predicate} {TIMES[phase]}?', name.capitalize())

  pairs = [
    (a, b)
    for a in facts
    for b in facts
    if a[1] < b[1] and single(facts, a) and single(facts, b)
  ]
  if pairs:
    earlier, later = pairs[rng.integers(len(pairs))]
    if not coin[2]:
      earlier, later = later, earlier
    ask_yes_no('order', lambda _: order_question(earlier, later), coin[2])

  crossings = scene.crossings()
  if len(things) > 1 and (crossings or rng.random() < 0.15):
    a, b = sorted(rng.choice(names, 2, replace=False), key=names.index)
    if crossings and coin[3]:
      a, b = sorted(next(iter(sorted(crossings, key=sorted))), key=names.index)
    ask_yes_no(
      'cross',
      lambda _: f'Do the {a} and the {b} cross?',
      frozenset((a, b)) in crossings,
    )
  if thing.turns or rng.random() < 0.3:
    ask_yes_no(
      'turn', lambda _: f'Does the {thing.name} change direction?', thing.turns
    )
  return [asked[i] for i in rng.permutation(len(asked))]


def long_questions(scene: Scene, rng: np.random.Generator) -> list[Qa]:
  """One question of every long kind that the clip admits, in random order."""
  facts = scene.facts()
  everything = [(name, phase) for name, phase, _ in facts]
  asked: list[Qa] = []

  def ask(kind, question, say, names=None, phase=ALL):
    span = tuple(
      (n, k)
      for n, k in everything
      if (names is None or n in names) and phase in (ALL, k)
    )
    asked.append(Qa(kind, question, say(scene), say, span, phase))

  ask(
    'describe',
    str(rng.choice(['Describe the video in detail.', 'What happens in the video?'])),
    description,
  )
  name = scene.things[rng.integers(len(scene.things))].name
  ask('course', f'What does the {name} do?', lambda s: courses(s, [name]), [name])
  for kind, shift in (('after', 1), ('before', -1)):
    anchors = [
      fact
      for fact in facts
      if single(facts, fact) and any(f[1] == fact[1] + shift for f in facts)
    ]
    if anchors:
      anchor, phase, predicate = anchors[rng.integers(len(anchors))]
      phase += shift
      ask(
        kind,
        f'What happens right {kind} the {anchor} {predicate}?',
        lambda s, phase=phase: caption(s, phase),
        phase=phase,
      )
  if len(scene.things) > 1:
    a, b = sorted(rng.choice(len(scene.things), 2, replace=False))
    pair = [scene.things[a].name, scene.things[b].name]
    ask(
      'compare',
      f'Compare the {pair[0]} and the {pair[1]}.',
      lambda s: comparison(s, pair),
      pair,
    )
  return [asked[i] for i in rng.permutation(len(asked))]


def comparison(scene: Scene, names: list[str]) -> str:
  """'First the red circle moves left and the blue ring stays. Then ...'"""
  said = []
  for phase in range(PHASES):
    parts = [
      f'the {thing.name} {thing.predicates[phase]}'
      for thing in scene.things
      if thing.name in names and thing.predicates[phase]
    ]
    if parts:
      said.append(sentence(f'{OPENERS[phase]} {" and ".join(parts)}'))
  return ' '.join(said)


def claim_question(claim: Claim) -> str:
  """'Does the red circle move left at first?'; without a time for a whole claim."""
  name, phase, predicate = claim
  if predicate == EXISTS:
    return f'Is there a {name}?'
  time = f' {TIMES[phase]}' if phase != ALL else ''
  return f'Does the {name} {base_form(predicate)}{time}?'


def order_question(a: Claim, b: Claim) -> str:
  return f'Does the {a[0]} {base_form(a[2])} before the {b[0]} {b[2]}?'


def single(facts: list[Claim], fact: Claim) -> bool:
  """Whether the object does this in one phase only, so that it dates itself."""
  return sum(f[0] == fact[0] and f[2] == fact[2] for f in facts) == 1


def absent_name(scene: Scene, rng: np.random.Generator) -> str:
  """An object that the clip does not show, often one feature away from one it does."""
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


def other_predicate(scene: Scene, name: str, phase: int, rng) -> str:
  """A false predicate for (name, phase), of a kind that truths have too."""
  true = next(p for n, k, p in scene.facts() if (n, k) == (name, phase))
  while True:
    pool = [MOVES, (STAYS,), scenes.PREDICATES][rng.choice(3, p=[0.5, 0.3, 0.2])]
    said = str(rng.choice(pool))
    if said not in (true, f'becomes {name.split()[0]}'):
      return said


# ---------------------------------------------------------------- reading back

_NAME = rf'(?:{"|".join(scenes.COLORS)}) (?:{"|".join(scenes.SHAPES)})'
_PREDICATE = '|'.join(sorted(scenes.PREDICATES, key=len, reverse=True))
_INVENTORY = re.compile(r'there (?:is one object|are \w+ objects): (.*)')
_CLAUSE = re.compile(
  rf'(?:(?P<opener>{"|".join(OPENERS)}) )?'
  rf'(?P<subject>the (?P<name>{_NAME})|it) (?P<predicate>{_PREDICATE})'
)


def read_claims(text: str, phase: int = ALL) -> tuple[list[Claim], int]:
  """A free text -> its claims and the number of clauses that say nothing readable.

  Args:
    text: an answer in the world's language; case and spacing do not matter.
    phase: what a clause without "first", "then" or "finally" refers to.
  """
  claims: list[Claim] = []
  unread = 0
  subject: str | None = None
  for part in re.split(r'[.\n]', text.lower()):
    part = ' '.join(part.split())
    when = phase
    if not part or part == 'nothing is there':
      continue
    if listed := _INVENTORY.fullmatch(part):
      for item in listed[1].split(' and '):
        name = item.removeprefix('a ')
        if re.fullmatch(_NAME, name):
          claims.append((name, ALL, EXISTS))
        else:
          unread += 1
      continue
    for clause in re.split(r', | and ', part):
      found = _CLAUSE.fullmatch(clause)
      if not found or (found['name'] is None and subject is None):
        unread += 1
        continue
      subject = found['name'] or subject
      when = OPENERS.index(found['opener']) if found['opener'] else when
      assert subject is not None
      claims.append((subject, when, found['predicate']))
  return claims, unread


@dataclasses.dataclass(frozen=True)
class Score:
  """Counts over the claims of one answer.

  Attributes:
    right, invented: claims that are true, and that are not (unreadable clauses too).
    recalled, required: facts asked for that the answer states, and all of them.
  """

  right: int
  invented: int
  recalled: int
  required: int

  @property
  def quality(self) -> float:
    """Claims right less claims invented, a fact asked for; 1 is a perfect answer."""
    return (self.recalled - self.invented) / max(self.required, 1)


def score_answer(facts: list[Claim], qa_span, phase: int, text: str) -> Score:
  """Scores a free answer against the facts of its clip."""
  claims, unread = read_claims(text, phase)
  claims = list(dict.fromkeys(claims))  # saying it twice counts once
  true = set(facts) | {(name, ALL, EXISTS) for name, _, _ in facts}
  right = [claim for claim in claims if claim in true]
  asked = {fact for fact in facts if tuple(fact[:2]) in {tuple(p) for p in qa_span}}
  return Score(
    right=len(right),
    invented=len(claims) - len(right) + unread,
    recalled=len(asked & set(right)),
    required=len(asked),
  )
