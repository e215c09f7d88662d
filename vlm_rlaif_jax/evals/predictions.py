"""The predictions of a model: its answer to each question, in their order.

Own files may repeat an id, so a prediction is kept beside its question, not by id.
"""

import json
import pathlib
from collections.abc import Sequence

import jax

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.evals.questions import Question
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun


def sampling(settings: EvalConfig, task: str, eos: int) -> sampler.Sampling:
  """Returns how the answers of 'qa' or 'describe' are sampled."""
  is_long = task == 'describe'
  limit = settings.describe_tokens if is_long else settings.answer_tokens
  return sampler.Sampling(limit, settings.temperature, eos=eos)


def predict(
  generator: Generator, settings: EvalRun, task: str, questions: Sequence[Question]
) -> list[str]:
  """Returns the answer to each question."""
  if not questions:
    return []
  tokenizer, template = generator.tokenizer, settings.eval.template
  outputs = generator.generate(
    [tokens.encode_prompt(tokenizer, one.text, template) for one in questions],
    [one.video for one in questions],
    list(range(len(questions))),
    sampling(settings.eval, task, tokenizer.eos),
    jax.random.key(settings.seed),
  )
  return [prompts.answer_of(tokenizer.decode(ids), template) for (ids,) in outputs]


def write(
  path: pathlib.Path, questions: Sequence[Question], predictions: Sequence[str]
) -> None:
  """Writes JSON lines: the row of each question with its `prediction`."""
  with path.open('w', encoding='utf-8') as file:
    for question, prediction in zip(questions, predictions, strict=True):
      file.write(json.dumps({**question.row, 'prediction': prediction}) + '\n')
