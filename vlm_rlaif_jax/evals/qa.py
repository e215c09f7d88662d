"""Zero-shot video QA without a judge: exact match, and claims where truth is known."""

import re

from vlm_rlaif_jax.data.world.truth import Truth

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = re.compile(r'[^\w\s]')


def normalize(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces (as in VQA scoring)."""
  text = _PUNCTUATION.sub(' ', text.lower())
  return ' '.join(_ARTICLES.sub(' ', text).split())


def is_right(row: dict, prediction: str, truth: Truth | None) -> bool:
  """Whether a prediction answers a row.

  A long answer with known facts is right if it states every fact that was asked for and
  invents none, in whatever words and order; any other by exact match.
  """
  key = row['question_id']
  if truth is not None and key in truth and truth.is_long(key):
    score = truth.score(key, prediction)
    return score.invented == 0 and score.recalled == score.required
  return normalize(prediction) == normalize(row['answer'])
