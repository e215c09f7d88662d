"""Reads a free text back into claims and scores it against the facts of its clip.

A claim is `(object, phase, predicate)`, as a fact is. Every answer in the world's
language can be read, so an answer is scored exactly: which claims are right, which are
invented, which facts are missing.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.language import NOTHING, OPENERS, TIMES, base_form

EXISTS = 'exists'  # the predicate of a bare mention
ALL = -1  # the phase of a claim that names none

Claim = tuple[str, int, str]

_NAME = rf'(?:{"|".join(scenes.COLORS)}) (?:{"|".join(scenes.SHAPES)})'
_PREDICATE = '|'.join(sorted(scenes.PREDICATES, key=len, reverse=True))
_INVENTORY = re.compile(r'there (?:is one object|are \w+ objects): (.*)')
_CLAUSE = re.compile(
  rf'(?:(?P<opener>{"|".join(OPENERS)}) )?'
  rf'(?P<subject>the (?P<name>{_NAME})|it) (?P<predicate>{_PREDICATE})'
)


def claim_question(claim: Claim) -> str:
  """Returns 'Does the red circle move left at first?'; no time where none is named."""
  name, phase, predicate = claim
  if predicate == EXISTS:
    return f'Is there a {name}?'
  time = f' {TIMES[phase]}' if phase != ALL else ''
  return f'Does the {name} {base_form(predicate)}{time}?'


def order_question(a: Claim, b: Claim) -> str:
  """Returns 'Does the red circle move left before the blue ring vanishes?'"""
  return f'Does the {a[0]} {base_form(a[2])} before the {b[0]} {b[2]}?'


def read_claims(text: str, phase: int = ALL) -> tuple[list[Claim], int]:
  """Returns the claims of a text and the number of clauses that cannot be read.

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
    if not part or part == NOTHING.lower().strip('.'):
      continue
    if inventory := _INVENTORY.fullmatch(part):
      for item in inventory[1].split(' and '):
        name = item.removeprefix('a ')
        if re.fullmatch(_NAME, name):
          claims.append((name, ALL, EXISTS))
        else:
          unread += 1
      continue
    for clause in re.split(r', | and ', part):
      match = _CLAUSE.fullmatch(clause)
      if not match or (match['name'] is None and subject is None):
        unread += 1
        continue
      subject = match['name'] or subject
      when = OPENERS.index(match['opener']) if match['opener'] else when
      assert subject is not None
      claims.append((subject, when, match['predicate']))
  return claims, unread


@dataclasses.dataclass(frozen=True)
class Score:
  """Counts over the claims of one answer.

  Attributes:
    right, invented: claims that are true, and that are not (unreadable clauses too).
    recalled, required: facts in the scope of the question that the answer states, and
      all of them.
  """

  right: int
  invented: int
  recalled: int
  required: int

  @property
  def quality(self) -> float:
    """Facts recalled less claims invented, a required fact; 1 is a perfect answer."""
    return (self.recalled - self.invented) / max(self.required, 1)


def score_answer(
  facts: Sequence[Claim], span: Iterable[Sequence], phase: int, text: str
) -> Score:
  """Scores a free answer against the facts of its clip.

  Args:
    span: (object, phase) pairs that a complete answer covers.
    phase: what a clause without "first", "then" or "finally" refers to.
  """
  claims, unread = read_claims(text, phase)
  claims = list(dict.fromkeys(claims))  # a repetition counts once
  true = set(facts) | {(name, ALL, EXISTS) for name, _, _ in facts}
  right = [claim for claim in claims if claim in true]
  scope = {tuple(pair) for pair in span}
  required = {fact for fact in facts if tuple(fact[:2]) in scope}
  return Score(
    right=len(right),
    invented=len(claims) - len(right) + unread,
    recalled=len(required & set(right)),
    required=len(required),
  )
