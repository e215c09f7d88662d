"""Zero-shot video QA without a judge: exact match, and claims where truth is known."""

import collections
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import words
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import statistics

_ARTICLES = re.compile(r'(?<!\S)(a|an|the)(?!\S)')
_THOUSANDS = re.compile(r'(?<=\d),(?=\d{3}(?!\d))')
# Inside a number and before one it says something: 3.5, 5:30, 1/2, -5.
_PUNCTUATION = re.compile(
  r'(?P<of_number>(?<=\d)[.:/](?=\d)|(?<![\w.])-(?=\d))|[^\w\s]'
)
_MINUS = '\u2212'


def normalize(text: str) -> str:
  """Returns lower case without punctuation and articles (as in VQA scoring).

  Of nothing but articles, as the option "A", the last stays, and punctuation alone
  stays, too: otherwise all of these would be equal to an empty answer. Numbers stay
  what they are, 1,000 is 1000, and a character counts the same however it is encoded.
  """
  lower = unicodedata.normalize('NFKC', text.replace(_MINUS, '-')).lower()
  spaced = _PUNCTUATION.sub(_simplify, _THOUSANDS.sub('', lower))
  parts = words.separate(spaced).split()
  content = _ARTICLES.sub(' ', ' '.join(parts)).split()
  return ' '.join(content or parts[-1:]) or lower.strip()


def _simplify(match: re.Match[str]) -> str:
  """Returns what stays of a character that is no letter, digit or space."""
  category = unicodedata.category(match[0])
  if match['of_number'] or category.startswith('M'):  # marks are parts of letters
    return match[0]
  return '' if category == 'Cf' else ' '  # Cf: joiners and the like have no width


def is_correct(row: dict[str, Any], prediction: str, truth: Truth | None) -> bool:
  """Returns whether a prediction answers the question of a row.

  A long answer whose facts are known is correct if it states every fact in the scope of
  the question and invents none, in any words and order; any other by exact match.
  """
  key = row['question_id']
  if truth is not None and key in truth and truth.is_long(key):
    score = truth.score(key, prediction)
    return score.invented == 0 and score.recalled == score.required
  return normalize(prediction) == normalize(row['answer'])


def correctness(
  rows: Sequence[dict[str, Any]], predictions: Sequence[str], truth: Truth | None
) -> list[float]:
  """Returns 1.0 for each correct prediction, 0.0 for the others."""
  return [
    float(is_correct(row, prediction, truth))
    for row, prediction in zip(rows, predictions, strict=True)
  ]


def scores(rows: Sequence[dict[str, Any]], correct: Sequence[float]) -> dict[str, Any]:
  """Returns accuracy, its interval over videos, and accuracy by kind of question."""
  kinds = collections.defaultdict(list)
  for row, value in zip(rows, correct, strict=True):
    kinds[row.get('kind', 'all')].append(value)
  videos = [row['video_name'] for row in rows]
  return {
    'n': len(correct),
    'qa_accuracy': float(np.mean(correct)),
    'qa_interval': statistics.share_interval(correct, videos),
    'qa_by_kind': {name: float(np.mean(v)) for name, v in sorted(kinds.items())},
  }
