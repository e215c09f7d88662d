"""One's own files, where the truth is not known: how answers compare with references.

An answer to a question with a short reference may be it; a caption is a description,
which no other description equals, so it is compared by its words:

    exact_match   of short references alone: the reference but for case, articles and
                  punctuation
    token_f1      words in common (Rajpurkar et al. 2016)
    rouge_l       longest common subsequence of words, F1 (Lin 2004)
    words         length of the answer
    judge_score   0 to 5, where a judge reads answers and does not only compare them
    reward        of a reward model, where `config.inputs.reward` names one

Such a judge also says whose answer is better, in both orders: `judges.wins`.

Items and answers are those of the tasks qa and describe.
"""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import words
from vlm_rlaif_jax.evals import predictions
from vlm_rlaif_jax.evals.benchmarks.benchmark import (
  Benchmark,
  Outputs,
  Tools,
  score_values,
)
from vlm_rlaif_jax.evals.benchmarks.preparation import Prepared
from vlm_rlaif_jax.evals.judges.cases import OWN_CRITERION
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.questions import Question
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.settings.eval import OWN

REWARD = 'reward'
SHORT = 5  # words of a reference up to which an answer may be it
EXAMPLES = 3


def items_of(questions: Mapping[str, Sequence[Question]]) -> list[Item]:
  """Returns the items of the questions of all tasks, told apart as short or not."""
  items = [
    (task, item)
    for task, part in questions.items()
    for item in predictions.items_of(part)
  ]
  counts = collections.Counter(item.key for _, item in items)
  return [
    Item(
      key=item.key if counts[item.key] == 1 else f'{task} {item.key}',
      video=item.video,
      video_name=item.video_name,
      prompts=item.prompts,
      reference=item.reference,
      fields={'kind': kind_of(item.reference), 'task': task},
      location=item.location,
    )
    for task, item in items
  ]


def kind_of(reference: str) -> str:
  """Returns what a reference is by its length: 'short answer' or 'description'."""
  return 'short answer' if words.count(reference) <= SHORT else 'description'


def token_f1(answer: str, reference: str) -> float:
  """Returns F1 of the words that two texts have in common, however often each."""
  first, second = normalize(answer).split(), normalize(reference).split()
  common = sum((collections.Counter(first) & collections.Counter(second)).values())
  return _f1(common, len(first), len(second))


def rouge_l(answer: str, reference: str) -> float:
  """Returns F1 of the longest common subsequence of words."""
  first, second = normalize(answer).split(), normalize(reference).split()
  row = [0] * (len(second) + 1)
  for word in first:
    before = 0
    for index, other in enumerate(second, 1):
      above = row[index]
      row[index] = before + 1 if word == other else max(above, row[index - 1])
      before = above
  return _f1(row[-1], len(first), len(second))


def _f1(common: int, first: int, second: int) -> float:
  """Returns F1 of a number of words in common; two empty texts are the same."""
  if not first and not second:
    return 1.0
  return 2 * common / (first + second)


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns how the answers compare with the references."""
  del tools
  pairs = [
    (texts[0], item.reference)
    for texts, item in zip(outputs.predictions, items, strict=True)
  ]
  values: dict[str, Sequence[float]] = {
    'exact_match': [
      float(normalize(a) == normalize(b)) if kind_of(b) == 'short answer' else math.nan
      for a, b in pairs
    ],
    'token_f1': [token_f1(a, b) for a, b in pairs],
    'rouge_l': [rouge_l(a, b) for a, b in pairs],
    'words': [float(words.count(a)) for a, _ in pairs],
  }
  if OWN_CRITERION in outputs.verdicts:
    values['judge_score'] = score_values(outputs.verdicts[OWN_CRITERION])
  if outputs.rewards:
    values[REWARD] = outputs.rewards
  return values


def examples(
  items: Sequence[Item], rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
  """Returns the first items whose answers differ, or the first, with every answer.

  Args:
    rows: by model.
  """

  def answers(number: int) -> dict[str, str]:
    return {model: part[number]['answers'][0] for model, part in rows.items()}

  order = sorted(range(len(items)), key=lambda i: len(set(answers(i).values())) < 2)
  return [
    {
      'key': items[number].key,
      'video_name': items[number].video_name,
      'question': items[number].prompts[0],
      'reference': items[number].reference,
      'answers': answers(number),
    }
    for number in order[:EXAMPLES]
  ]


def prepare(
  questions: Mapping[str, Sequence[Question]], path: pathlib.Path
) -> Prepared:
  """Returns the questions of the tasks as a benchmark.

  Args:
    path: of the file that most of them are from.
  """
  items = tuple(items_of(questions))
  return Prepared(
    benchmark=RECORD,
    items=items,
    of=len(items),
    rows=len(items),
    missing={},
    files=(path,),
    fingerprint=hosts.files_fingerprint([path]),
  )


RECORD = Benchmark(
  name=OWN,
  family='own',
  dataset='own',
  files=(),
  score=score,
  best={'judge_score': 5.0, 'words': math.inf, REWARD: math.inf},
  partial=('exact_match',),
  with_error=(REWARD,),
  headline=(REWARD, 'token_f1', 'rouge_l', 'exact_match', 'judge_score', 'words'),
)
