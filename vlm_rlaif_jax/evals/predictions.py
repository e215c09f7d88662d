"""The predictions of a model in the tasks qa and describe: its answer to each question.

Own files may repeat an id, so a prediction is kept beside its question, not by id.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.benchmarks.answering import Request, answer_all
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.evals.questions import Question
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.eval import OWN, WORLD_TASKS, EvalConfig, EvalRun


def longest(settings: EvalConfig, task: str) -> int:
  """Returns the tokens of the longest answer of 'qa' or 'describe'."""
  return settings.describe_tokens if task == 'describe' else settings.answer_tokens


def limits(settings: EvalConfig, benchmark: Benchmark) -> int | dict[str, int]:
  """Returns the tokens of the longest answer to a benchmark.

  Answers to 'own' are those of the tasks, so there it is the limit of each of them.
  """
  if benchmark.name == OWN:
    return {task: longest(settings, task) for task in WORLD_TASKS}
  return getattr(settings, benchmark.tokens)


def items_of(questions: Sequence[Question]) -> list[Item]:
  """Returns the items of questions; a repeated id is told apart by its number."""
  ids = [one.row['question_id'] for one in questions]
  distinct = len(set(ids)) == len(ids)
  return [
    Item(
      key=key if distinct else f'{key} {number}',
      video=question.video,
      video_name=question.row['video_name'],
      prompts=(question.text,),
      reference=question.row['answer'],
      fields={'kind': question.row.get('kind', 'all')},
      location=question.location,
    )
    for number, (key, question) in enumerate(zip(ids, questions, strict=True))
  ]


def answer(
  generator: Generator,
  settings: EvalRun,
  task: str,
  questions: Sequence[Question],
  path: pathlib.Path,
  identity: str,
) -> list[dict[str, Any]]:
  """Returns a row of the answer to each question, kept in a file if a run is killed.

  Args:
    path, identity: of the `AnswerFile`.
  """
  if not questions:
    return []
  items = items_of(questions)
  reuses = settings.checkpoint.on_change != 'restart'
  file = AnswerFile(path, identity, items, generator.contents, reuses)
  request = Request(items, file, longest(settings.eval, task))
  answer_all(generator, settings, [request])
  return file.in_order(items)


def write(
  path: pathlib.Path, questions: Sequence[Question], rows: Sequence[dict[str, Any]]
) -> None:
  """Writes JSON lines: the row of each question with its `prediction`.

  `ended` says whether that ended by itself, and not at the limit of its length.

  Args:
    rows: of `answer`.
  """
  with path.open('w', encoding='utf-8') as file:
    for question, row in zip(questions, rows, strict=True):
      (prediction,), (ended,) = row['answers'], row['ended']
      line = {**question.row, 'prediction': prediction, 'ended': ended}
      file.write(json.dumps(line) + '\n')
