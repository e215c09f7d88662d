"""Multiple choice without a judge: by the odds of the letters, and by generation.

accuracy             the letter with the highest log-probability as the next token
generated_accuracy   the letter that the model writes; an answer that names none is
                     wrong, and `parsed` is the share that names one
chance               what guessing gives
task_mean            of MVBench: the mean over its tasks, which is its headline
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.evals.benchmarks import choice_files
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, Outputs, Tools
from vlm_rlaif_jax.evals.benchmarks.choice_files import FIRST, LETTERS
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Item, Values

_NAMED = re.compile(
  r'\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-J])\b(?!\s+[a-z])'
)


# --------------------------------------------------------------------------- scores


def chosen_letter(answer: str, options: Sequence[str]) -> str:
  """Returns the letter that an answer names; '' if none, or if it cannot be told.

  'B', 'B.', '(B) text', 'the answer is B', or the text of one option alone.
  """
  allowed = LETTERS[: len(options)]
  match = FIRST.match(answer) or _NAMED.search(answer)
  if match:
    return match[1] if match[1] in allowed else ''
  text = f' {normalize(answer)} '
  matches = [
    letter
    for letter, option in zip(allowed, options, strict=True)
    if f' {normalize(option)} ' in text
  ]
  return matches[0] if len(matches) == 1 else ''


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns right choices by the letters' odds and by generation, and what is chance.

  An option that ties with the right one counts as chosen.
  """
  del tools
  rights = [LETTERS.index(item.reference) for item in items]
  options = [item.fields['options'] for item in items]
  letters = [
    chosen_letter(texts[0], names)
    for texts, names in zip(outputs.predictions, options, strict=True)
  ]
  values: dict[str, Sequence[float]] = {}
  if outputs.options:
    values['accuracy'] = [
      float(all(odds[right] > o for i, o in enumerate(odds) if i != right))
      for odds, right in zip(outputs.options, rights, strict=True)
    ]
  values['generated_accuracy'] = [
    float(letter == item.reference) for letter, item in zip(letters, items, strict=True)
  ]
  values['parsed'] = [float(letter != '') for letter in letters]
  values['chance'] = [1 / len(names) for names in options]
  return values


def score_mvbench(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns `score`, and the mean over tasks by the letters' odds."""
  values = dict(score(items, outputs, tools))
  counts = Counter(item.fields['kind'] for item in items)
  if 'accuracy' in values:
    weights = [len(items) / len(counts) / counts[one.fields['kind']] for one in items]
    values['task_mean'] = np.multiply(values['accuracy'], weights).tolist()
  return values


_HEADLINE = ('accuracy', 'generated_accuracy', 'chance')

ALL = (
  Benchmark(
    name='video_mme',
    family='choice',
    dataset='video_mme',
    files=choice_files.VIDEO_MME,
    read=choice_files.read_video_mme,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
  ),
  Benchmark(
    name='mvbench',
    family='choice',
    dataset='mvbench',
    files=choice_files.MVBENCH,
    needs_all_files=False,
    read=choice_files.read_mvbench,
    score=score_mvbench,
    tokens='answer_tokens',
    weighted=('task_mean',),
    headline=('task_mean', *_HEADLINE),
  ),
  Benchmark(
    name='next_qa',
    family='choice',
    dataset='next_qa',
    files=choice_files.NEXT_QA,
    read=choice_files.read_next_qa,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
  ),
  Benchmark(
    name='tempcompass',
    family='choice',
    dataset='tempcompass',
    files=choice_files.TEMPCOMPASS,
    read=choice_files.read_tempcompass,
    score=score,
    tokens='answer_tokens',
    headline=_HEADLINE,
  ),
)
