"""Marks words of an answer: what another answer says otherwise, and what is wrong."""

import difflib
import itertools
import re
from collections.abc import Sequence

from vlm_rlaif_jax.data.world import claims
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.reports.page.html import Html, join, tag

_WORD = re.compile(r'\S+\s*')
LONGEST = 4000  # characters of an answer that are displayed

Span = tuple[int, int]


def words(text: str) -> list[Span]:
  """Returns where the words of a text are, each with the space behind it."""
  return [match.span() for match in _WORD.finditer(text)]


def changed_words(before: str, after: str) -> tuple[set[int], set[int]]:
  """Returns the numbers of the words that only one of two texts has."""
  sides = [[text[a:b].strip() for a, b in words(text)] for text in (before, after)]
  removed, added = set(), set()
  matcher = difflib.SequenceMatcher(None, *sides, autojunk=False)
  for kind, i, j, k, l in matcher.get_opcodes():
    if kind != 'equal':
      removed.update(range(i, j))
      added.update(range(k, l))
  return removed, added


def wrong_spans(text: str, key: str, truth: Truth | None) -> list[Span]:
  """Returns where a text claims what is not so; nothing where no facts are known."""
  if truth is None or key not in truth or not truth.is_long(key):
    return []
  if len(text.lower()) != len(text):  # its places would be others
    return []
  record = truth.records[key]
  facts = {(name, phase, predicate) for name, phase, predicate in record['facts']}
  facts |= {(name, claims.ALL, claims.EXISTS) for name, *_ in record['facts']}
  return [
    (first, last)
    for first, last, claim in claims.read_clauses(text, record['phase'])
    if claim is None or claim not in facts
  ]


def marked(
  text: str, changed: set[int], wrong: Sequence[Span], element: str = 'ins'
) -> Html:
  """Returns a text with its changed words and its wrong claims as elements.

  Args:
    changed: numbers of words.
    wrong: places of claims.
    element: of changed words: 'ins' or 'del'.
  """
  text = text[:LONGEST]

  def flags(place: int, span: Span) -> tuple[bool, bool]:
    first, last = span[0], span[0] + len(text[span[0] : span[1]].rstrip())
    is_wrong = any(first < end and last > start for start, end in wrong)
    return place in changed, is_wrong

  parts: list[Html | str] = []
  numbered = [(flags(place, span), span) for place, span in enumerate(words(text))]
  for (is_changed, is_wrong), group in itertools.groupby(numbered, lambda one: one[0]):
    spans = [span for _, span in group]
    run = text[spans[0][0] : spans[-1][1]]
    body, space = run.rstrip(), run[len(run.rstrip()) :]
    part: Html | str = body
    if is_changed:
      part = tag(element, part)
    if is_wrong:
      part = tag('span', part, class_='wrong')
    parts += [part, space]
  return join(parts)
