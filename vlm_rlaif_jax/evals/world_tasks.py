"""The tasks qa and describe, from their questions to what a summary says of them.

qa         short answers by exact match; long ones by their facts, where these are known
describe   descriptions, by the facts that they state and invent
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, qa, repair
from vlm_rlaif_jax.evals.predictions import longest
from vlm_rlaif_jax.evals.questions import (
  Question,
  check_any,
  drop_long,
  drop_unreadable,
  read_questions,
)
from vlm_rlaif_jax.settings.eval import OWN, WORLD_TASKS, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig

Questions = dict[str, list[Question]]


def read(settings: EvalRun, data: DataConfig, skipped: Skipped) -> Questions:
  """Returns the questions of the tasks that were chosen, none of the others."""
  questions = {
    task: read_questions(data, task, skipped, settings.eval)
    if _is_chosen(settings, task)
    else []
    for task in WORLD_TASKS
  }
  _check(questions, settings, data)
  return questions


def fitting(
  settings: EvalRun,
  data: DataConfig,
  tokenizer: Tokenizer,
  questions: Questions,
  skipped: Skipped,
) -> Questions:
  """Returns the questions whose text fits, or stops, as the policy says."""
  template, buckets = settings.eval.template, data.buckets
  visual = data.frames + settings.model.vision.patches
  room = settings.model.llama.max_positions - visual
  result = {
    task: drop_long(
      part, tokenizer, buckets, template, skipped, room - longest(settings.eval, task)
    )
    for task, part in questions.items()
  }
  _check(result, settings, data)
  return result


def readable(
  settings: EvalRun,
  data: DataConfig,
  questions: Questions,
  bad: Mapping[Video, str],
  skipped: Skipped,
) -> Questions:
  """Returns the questions whose video can be read, or stops, as the policy says."""
  result = {
    task: drop_unreadable(part, bad, skipped) for task, part in questions.items()
  }
  _check(result, settings, data)
  return result


def _is_chosen(settings: EvalRun, task: str) -> bool:
  """Returns whether a task is evaluated, by itself or as a part of 'own'."""
  return task in settings.benchmarks or OWN in settings.benchmarks


def _check(questions: Questions, settings: EvalRun, data: DataConfig) -> None:
  if _is_chosen(settings, 'qa'):
    check_any(questions['qa'], data, settings.eval)


def scores(
  questions: Questions,
  outputs: Mapping[str, Sequence[str]],
  truth: Truth | None,
  axes: str,
) -> tuple[dict[str, Any], list[float]]:
  """Returns the numbers of one model, and whether each answer of qa is right.

  Args:
    outputs: by task, the answer to each question.
    axes: `world.flip_axes`.
  """
  rows = {task: [one.row for one in part] for task, part in questions.items()}
  correct = qa.correctness(rows['qa'], outputs['qa'], truth)
  results: dict[str, Any] = {}
  if correct:
    results |= qa.scores(rows['qa'], correct)
  results |= descriptions.scores(rows['describe'], outputs['describe'], truth)
  if truth is not None and correct:
    results |= repair.long_answers(rows['qa'], outputs['qa'], correct, truth)
    results['faults'] = repair.faults(rows['qa'], outputs['qa'], truth, axes)
  return results, correct


def change(
  correct: Mapping[str, Sequence[float]],
  questions: Sequence[Question],
  truth: Truth | None,
) -> dict[str, Any]:
  """Returns the changes of accuracy to RLAIF from SFT and from init, where they ran.

  Returns:
    qa_change, qa_change_interval: from SFT, over all questions: what the method does.
    qa_change_from_init, with its interval: what PPO does, which starts there.
    changes: from 'sft' and 'init', over all, long and short questions, and by kind.
  """
  if 'rlaif' not in correct or not {'sft', 'init'} & correct.keys() or not questions:
    return {}
  rows = [one.row for one in questions]
  changes = {
    name: repair.change(rows, correct[name], correct['rlaif'], truth)
    for name in ('sft', 'init')
    if name in correct
  }
  summary: dict[str, Any] = {'changes': changes}
  for before, name in (('sft', 'qa_change'), ('init', 'qa_change_from_init')):
    if before in changes:
      summary[name] = changes[before]['all']['change']
      summary[f'{name}_interval'] = changes[before]['all']['interval']
  return summary
