"""Reads a free text back into claims and scores it against the facts of its clip.

A claim is `(object, phase, predicate)`, as a fact is. Every answer in the world's
language can be read, so an answer is scored exactly: which claims are right, which are
invented, which facts are missing.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

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

_AND = re.compile(r'\s+and\s+')
_BETWEEN_CLAUSES = re.compile(r',\s+|\s+and\s+')


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
  claims = [claim for *_, claim in read_clauses(text, phase)]
  read = [claim for claim in claims if claim is not None]
  return read, len(claims) - len(read)


def read_clauses(
  text: str, phase: int = ALL
) -> Iterator[tuple[int, int, Claim | None]]:
  """Yields where the clauses of a text are, and their claims.

  Args:
    text, phase: as `read_claims` takes them.

  Yields:
    first place, place after the last, of the text in lower case; the claim, or None
    for a clause that cannot be read.
  """
  text = text.lower()
  subject: str | None = None
  for sentence in re.finditer(r'[^.\n]+', text):
    when = phase
    start, end = _stripped(text, *sentence.span())
    part = _spaced(text[start:end])
    if not part or part == NOTHING.lower().strip('.'):
      continue
    if _INVENTORY.fullmatch(part):
      for first, last in _split(text, text.index(':', start) + 1, end, _AND):
        name = _spaced(text[first:last]).removeprefix('a ')
        is_object = re.fullmatch(_NAME, name)
        yield first, last, (name, ALL, EXISTS) if is_object else None
      continue
    for first, last in _split(text, start, end, _BETWEEN_CLAUSES):
      match = _CLAUSE.fullmatch(_spaced(text[first:last]))
      if not match or (match['name'] is None and subject is None):
        yield first, last, None
        continue
      subject = match['name'] or subject
      when = OPENERS.index(match['opener']) if match['opener'] else when
      assert subject is not None
      yield first, last, (subject, when, match['predicate'])


def _spaced(text: str) -> str:
  """Returns a text with single spaces."""
  return re.sub(r'\s+', ' ', text)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
  """Returns a part of a text without the space around it."""
  part = text[start:end]
  start += len(part) - len(part.lstrip())
  return start, start + len(part.strip())


def _split(
  text: str, start: int, end: int, separator: re.Pattern
) -> Iterator[tuple[int, int]]:
  """Yields the parts between separators."""
  start, end = _stripped(text, start, end)
  for match in separator.finditer(text, start, end):
    yield start, match.start()
    start = match.end()
  yield start, end


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
