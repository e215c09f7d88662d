"""Sentences about a clip, phrased from the facts of its scene.

A sentence about another scene than the clip's own is a wrong answer in the right words.
"""

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world.scene import PHASES, Scene

NUMBERS = ('zero', 'one', 'two', 'three')
OPENERS = ('first', 'then', 'finally')  # phase 0, 1, 2 in an answer
TIMES = ('at first', 'in the middle', 'at the end')  # the same in a question
NOTHING = 'Nothing is there.'


def base_form(predicate: str) -> str:
  """Returns a predicate without its ending: 'moves left' -> 'move left'."""
  verb, _, rest = predicate.partition(' ')
  verb = {'vanishes': 'vanish', 'stays': 'stay'}.get(verb, verb.removesuffix('s'))
  return f'{verb} {rest}'.strip()


def sentence(text: str) -> str:
  """Returns a text with a capital letter and a period."""
  return text[0].upper() + text[1:] + '.'


def course(name: str, predicates: tuple[str, ...]) -> str:
  """Returns 'First the red circle moves left, then it stays, finally it vanishes.'"""
  parts, subject = [], f'the {name}'
  for phase, predicate in enumerate(predicates):
    if predicate:
      parts.append(f'{OPENERS[phase]} {subject} {predicate}')
      subject = 'it'
  return sentence(', '.join(parts))


def course_sentences(scene: Scene, names: list[str]) -> str:
  """Returns the courses of the objects with these names, in the scene's order."""
  return ' '.join(
    course(thing.name, thing.predicates)
    for thing in scene.things
    if thing.name in names
  )


def inventory(names: list[str]) -> str:
  """Returns 'There are two objects: a red circle and a blue ring.'"""
  objects = ' and '.join(f'a {name}' for name in names)
  count = NUMBERS[len(names)]
  noun = 'is one object' if len(names) == 1 else f'are {count} objects'
  return sentence(f'there {noun}: {objects}')


def description(scene: Scene) -> str:
  """Returns the inventory of a scene and the course of every object."""
  names = [thing.name for thing in scene.things]
  return f'{inventory(names)} {course_sentences(scene, names)}'


def narrative(scene: Scene) -> str:
  """Returns captions of clips of one phase each, joined as the label stage does."""
  return prompts.narrative([caption(scene, phase) for phase in range(PHASES)])


def caption(scene: Scene, phase: int) -> str:
  """Returns what a clip of one phase shows: 'The red circle moves left. ...'"""
  sentences = [
    sentence(f'the {thing.name} {thing.predicates[phase]}')
    for thing in scene.things
    if thing.predicates[phase]
  ]
  return ' '.join(sentences) or NOTHING


def comparison(scene: Scene, names: list[str]) -> str:
  """Returns 'First the red circle moves left and the blue ring stays. Then ...'"""
  sentences = []
  for phase in range(PHASES):
    parts = [
      f'the {thing.name} {thing.predicates[phase]}'
      for thing in scene.things
      if thing.name in names and thing.predicates[phase]
    ]
    if parts:
      sentences.append(sentence(f'{OPENERS[phase]} {" and ".join(parts)}'))
  return ' '.join(sentences)
