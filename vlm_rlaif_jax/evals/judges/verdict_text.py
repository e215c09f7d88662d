"""Reads a verdict from what a judge wrote: JSON, a dictionary literal, or a pattern.

What was graded may hold text that looks like a verdict, and a judge may quote it. The
whole reply is a verdict if it is one object; otherwise objects and patterns inside it
count only if they do not stand in the graded texts, and only if all of them agree.
What a judge thinks before it replies is no verdict, however long it is, and neither is
a score on another scale: 4 out of 10, 80 %, 3-4.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vlm_rlaif_jax.evals.records import Verdict

LOWEST, HIGHEST = 0.0, 5.0
MIDDLE = (LOWEST + HIGHEST) / 2  # the score of a tie
RAW_LIMIT = 4000  # characters of a reply that are kept
READ_LIMIT = 1 << 17  # and that are read: verdicts may come after long explanations

_FENCE = re.compile(r'```\w*\s*\n?(.*?)\n?\s*```', re.DOTALL)
_THOUGHT = re.compile(r'\A\s*<think(ing)?>.*?</think(ing)?>', re.DOTALL)
_THOUGHT_START = re.compile(r'\A\s*<think(ing)?>')
# Where the template of a model writes the start of its thoughts, a reply has the end.
_THOUGHT_ENDS = ('</think>', '</thinking>')
_OBJECT = re.compile(r'\{[^{}]*\}')
_PRED = re.compile(
  r'\bpred["\']?\s*[:=]\s*["\']?(yes|no)\b(?!\s*(?:/|or\b))', re.IGNORECASE
)
_NUMBER = r'\d+(?:\.\d+)?(?![\d.]*\d)'
_SCALE = rf'\s*(?:/|\(?out of|of)\s*({_NUMBER})'
_SCORE = re.compile(
  rf'\bscore["\']?\s*[:=]\s*["\']?({_NUMBER})(?:{_SCALE})?'
  r'(?!,\d|\s*(?:%|percent|[-\u2013\u2014]\s*\d|(?:to|or)\s+\d|\(?out of|of\s+\d|/))',
  re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r'[\d.]+\Z')
_SCALED = re.compile(rf'\s*({_NUMBER}){_SCALE}\s*', re.IGNORECASE)
_BETTER = re.compile(
  r'\bbetter["\']?\s*[:=]\s*["\']?(first|second|tie)\b', re.IGNORECASE
)
_STRAY_BACKSLASH = re.compile(r'\\(?![\\\'"abfnrtvxuUN0-7\n])')

_PREFERENCES = {
  'first': (HIGHEST, True),
  'second': (LOWEST, False),
  'tie': (MIDDLE, None),
}


class _MalformedError(ValueError):
  """A reply without a verdict; the message says what is missing."""


def read(
  reply: str, criterion: str, request_texts: Sequence[str] = (), is_cut: bool = False
) -> Verdict:
  """Returns the verdict of a reply; unscored, with the reason, if it has none.

  Args:
    reply: what the judge wrote, and nothing else.
    criterion: 'answer' needs "pred" and "score", 'preference' "better", the others
      "score".
    request_texts: what the judge was shown and did not write.
    is_cut: whether it ended at the limit of its length.
  """
  raw = reply[:RAW_LIMIT]
  try:
    text = _without_thoughts(reply[:READ_LIMIT], request_texts).strip()
    score, correct = _verdict(text, criterion, request_texts, is_cut)
  except _MalformedError as error:
    return Verdict(raw=raw, error=str(error))
  return Verdict(score, correct, raw)


def _without_thoughts(reply: str, request_texts: Sequence[str]) -> str:
  """Returns what follows the thoughts of a reply; raises where nothing can."""
  if _THOUGHT_START.match(reply):
    text, count = _THOUGHT.subn('', reply, count=1)
    if not count:
      raise _MalformedError('the reply ends inside the thoughts of the judge')
    return text
  for end in _THOUGHT_ENDS:
    # One that was shown may be quoted, with a verdict of the graded text after it.
    if end in reply and not _quoted(end, request_texts):
      return reply.rpartition(end)[2]
  return reply


def _verdict(
  text: str, criterion: str, request_texts: Sequence[str], is_cut: bool
) -> tuple[float, bool | None]:
  """Returns score and correctness; raises _MalformedError where there is none."""
  if not text:
    raise _MalformedError('the reply is empty')
  fence = _FENCE.fullmatch(text)
  whole = _object(fence[1].strip() if fence else text)
  if whole is not None:
    return _fields(whole, criterion)
  # 4 at the end of what is cut, or of an object that is not closed, may be of 4.8.
  if is_cut or text.count('{') > text.count('}'):
    text = _LAST_NUMBER.sub('', text)
  return _patterns(text, criterion, request_texts)


def _object(text: str) -> dict[str, Any] | None:
  """Returns a text that is one object, of JSON or a literal; None if it is not.

  An object in which a key is there twice is none, since it says two things.
  """
  for load in (_json_object, _literal_object):
    try:
      pairs = load(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
      continue
    names = [str(name).strip().lower() for name, _ in pairs]
    if len(set(names)) < len(names):
      return None
    return dict(zip(names, (value for _, value in pairs), strict=True))
  return None


class _Pairs(list):
  """The pairs of an object of JSON, which a list of JSON is not."""


def _json_object(text: str) -> list[tuple[Any, Any]]:
  pairs = json.loads(text, object_pairs_hook=_Pairs)
  if not isinstance(pairs, _Pairs):
    raise ValueError('no object')
  return pairs


def _literal_object(text: str) -> list[tuple[Any, Any]]:
  # A backslash that escapes nothing is a warning, and in time an error, of Python's.
  node = ast.parse(_STRAY_BACKSLASH.sub(r'\\\\', text.strip()), mode='eval').body
  if not isinstance(node, ast.Dict) or None in node.keys:
    raise ValueError('no dictionary')
  keys = [ast.literal_eval(key) for key in node.keys if key is not None]
  values = [ast.literal_eval(value) for value in node.values]
  return list(zip(keys, values, strict=True))


def _fields(content: dict[str, Any], criterion: str) -> tuple[float, bool | None]:
  """Returns score and correctness of an object."""
  if criterion == 'preference':
    if 'better' not in content:
      raise _MalformedError('no "better" in the reply')
    return _preference(content['better'])
  if 'score' not in content:
    raise _MalformedError('no "score" in the reply')
  score = _number(content['score'])
  if criterion != 'answer':
    return score, None
  if 'pred' not in content:
    raise _MalformedError('no "pred" in the reply')
  return score, _yes(content['pred'])


def _number(value: Any) -> float:
  """Returns a score within its range; a number in quotes is one, and "4/5" is."""
  if isinstance(value, str) and (match := _SCALED.fullmatch(value)):
    value = _of_five(match)
  try:
    score = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    score = math.nan
  if not LOWEST <= score <= HIGHEST:
    text = repr(value)[:40]
    raise _MalformedError(f'"score" must be a number from 0 to 5, got {text}')
  return score


def _yes(value: Any) -> bool:
  text = str(value).strip().strip('.!').lower()
  if text not in ('yes', 'no', 'true', 'false'):
    raise _MalformedError(f'"pred" must be yes or no, got {repr(value)[:40]}')
  return text in ('yes', 'true')


def _preference(value: Any) -> tuple[float, bool | None]:
  """Returns the score of the first of two answers, and whether it is the better."""
  text = str(value).strip().strip('.!').lower()
  if text not in _PREFERENCES:
    raise _MalformedError(
      f'"better" must be first, second or tie, got {repr(value)[:40]}'
    )
  return _PREFERENCES[text]


def _patterns(
  text: str, criterion: str, request_texts: Sequence[str]
) -> tuple[float, bool | None]:
  """Returns the one verdict that stands in a text and in nothing that was shown."""
  verdicts = set()
  for match in _OBJECT.finditer(text):
    content = _object(match[0])
    if content is not None and not _quoted(match[0], request_texts):
      try:
        verdicts.add(_fields(content, criterion))
      except _MalformedError:
        continue
  if not verdicts and criterion == 'preference':
    sides = _own(_BETTER.finditer(text), request_texts)
    verdicts = {_preference(match[1]) for match in sides}
  elif not verdicts:
    scores = {_number(_of_five(m)) for m in _own(_SCORE.finditer(text), request_texts)}
    preds = {m[1].lower() == 'yes' for m in _own(_PRED.finditer(text), request_texts)}
    answers = preds if criterion == 'answer' else {None}
    verdicts = {(score, answer) for score in scores for answer in answers}
  if not verdicts:
    raise _MalformedError('no verdict in the reply')
  if len(verdicts) > 1:
    raise _MalformedError('several verdicts in the reply')
  return verdicts.pop()


def _own(
  matches: Iterable[re.Match[str]], request_texts: Sequence[str]
) -> list[re.Match[str]]:
  """Returns the matches that the judge did not copy from what it was shown."""
  return [match for match in matches if not _quoted(match[0], request_texts)]


def _quoted(text: str, request_texts: Sequence[str]) -> bool:
  return any(text in one for one in request_texts)


def _of_five(match: re.Match[str]) -> str:
  """Returns the number of "4" or "4/5"; NaN of a score on another scale."""
  return match[1] if match[2] is None or float(match[2]) == HIGHEST else 'nan'
