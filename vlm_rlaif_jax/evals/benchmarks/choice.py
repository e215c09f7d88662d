"""Multiple choice without a judge: by the odds of the letters, and by generation.

accuracy             the letter with the highest log-probability as the next token
generated_accuracy   the letter that the model writes; an answer that names none is
                     wrong, and `parsed` is the share that names one
chance               what guessing gives
task_mean            of MVBench: the mean over its tasks, which is its headline;
                     generated_task_mean is that of generated_accuracy
accuracy_causal      of NExT-QA, with accuracy_temporal, accuracy_descriptive: by group
                     of types, and generated_accuracy alike
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.evals.benchmarks import choice_files
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, Outputs, Tools
from vlm_rlaif_jax.evals.benchmarks.choice_files import FIRST, LETTERS
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Item, Values

_DECORATION = re.compile(r'[*_`"\'\u2018\u2019\u201c\u201d\[\]]')
# 'a' may be an article and 'i.e.' is no letter, so a small one has to stand alone.
_SMALL = re.compile(r'\s*\(?([a-j])(?:[):]|\.(?=\s|$)|\s*$)')
_DASH = re.compile(r'\s*\(?([A-J])\)?\s+[-\u2013\u2014]\s')
_LETTER_AND_TEXT = re.compile(r'\s*([A-J])\s+(.+)', re.DOTALL)
# Of 'A, B and D' or 'B or C' no letter is the one that was chosen.
_NO_OTHER = r'(?!\)?\s*(?:,|/|&|and\b|or\b)\s*\(?[A-J]\b(?!\s+(?!and\b|or\b)[a-z]))'
_ONLY = re.compile(rf'\s*\(?[A-J]\b{_NO_OTHER}')
# 'The answer is A man' names no letter, nor does 'I'.
_CAPITAL = r'\(?(?:([B-HJ])\b|([AI])\b(?!\s+[a-z]))'
_ANSWER = re.compile(
  r'\b(?i:answer|(?:correct|best|right)\s+(?:option|choice))\b(?:\s+is)?\s*:?\s*'
  rf'(?i:option\s+|choice\s+)?{_CAPITAL}{_NO_OTHER}'
)
_NAMED = re.compile(
  r'\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-J])\b(?!\s+[a-z])' + _NO_OTHER
)


# --------------------------------------------------------------------------- scores


def chosen_letter(answer: str, options: Sequence[str]) -> str:
  """Returns the letter that an answer names; '' if none, or if it cannot be told.

  'B', 'B.', 'b)', '**B**', '(B) text', 'the answer is B', or the text of one option
  alone. The text of an option inside that of a longer one ('cat' in 'black cat') is
  not named by the longer one.
  """
  allowed = LETTERS[: len(options)]
  letter = _letter_of(answer, options)
  if letter:
    return letter if letter in allowed else ''
  return _by_text(answer, options)


def _letter_of(answer: str, options: Sequence[str]) -> str:
  """Returns the letter that stands in an answer as one; '' if there is none.

  A capital is a letter even where the options are letters, since letters are asked for.
  """
  plain = _DECORATION.sub('', answer)
  first = FIRST.match(plain) or _DASH.match(plain)
  if first:
    return first[1] if _ONLY.match(plain) else ''
  named = dict(zip(LETTERS, options, strict=False))
  exact = [letter for letter, text in named.items() if text.strip() == answer.strip()]
  if len(exact) == 1:
    return exact[0]
  if match := _SMALL.match(plain):
    return match[1].upper()
  if match := _LETTER_AND_TEXT.match(plain):
    option = named.get(match[1])
    if option is not None and normalize(option) == normalize(match[2]):
      return match[1]
  if match := _ANSWER.search(plain):
    return match[1] or match[2]
  match = _NAMED.search(plain)
  return match[1] if match else ''


def _by_text(answer: str, options: Sequence[str]) -> str:
  """Returns the letter of the only option whose words stand in an answer, or ''."""
  text, letters = normalize(answer), []
  names = {
    letter: normalize(one) for letter, one in zip(LETTERS, options, strict=False)
  }
  for name in sorted(set(names.values()), key=len, reverse=True):
    text, count = re.subn(rf'(?<!\S){re.escape(name)}(?!\S)', '|', text)
    letters += [letter for letter, other in names.items() if other == name and count]
  return letters[0] if len(letters) == 1 else ''


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
  """Returns `score`, and the means over tasks by the letters' odds and as written."""
  values = dict(score(items, outputs, tools))
  counts = Counter(item.fields['kind'] for item in items)
  weights = [len(items) / len(counts) / counts[one.fields['kind']] for one in items]
  for name, prefix in (('accuracy', ''), ('generated_accuracy', 'generated_')):
    if name in values:
      values[f'{prefix}task_mean'] = np.multiply(values[name], weights).tolist()
  return values


def score_next_qa(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns `score`, and accuracies by group of types, as papers on NExT-QA print them.

  They are Acc@C, Acc@T and Acc@D of the official evaluation, by the letters' odds and
  as written; each is of the questions of its group, and NaN at the others.
  """
  values = dict(score(items, outputs, tools))
  groups = [item.fields['kind'][:1] for item in items]
  for name in ('accuracy', 'generated_accuracy'):
    for first, group in NEXT_QA_GROUPS.items():
      if name in values:
        values[f'{name}_{group}'] = [
          value if letter == first else math.nan
          for value, letter in zip(values[name], groups, strict=True)
        ]
  return values


NEXT_QA_GROUPS = {'C': 'causal', 'T': 'temporal', 'D': 'descriptive'}
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
    weighted=('task_mean', 'generated_task_mean'),
    headline=('task_mean', *_HEADLINE),
  ),
  Benchmark(
    name='next_qa',
    family='choice',
    dataset='next_qa',
    files=choice_files.NEXT_QA,
    read=choice_files.read_next_qa,
    score=score_next_qa,
    tokens='answer_tokens',
    partial=tuple(
      f'{name}_{group}'
      for name in ('accuracy', 'generated_accuracy')
      for group in NEXT_QA_GROUPS.values()
    ),
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
