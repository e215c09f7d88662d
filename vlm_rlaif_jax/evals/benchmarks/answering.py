"""Asks one model what a benchmark asks, and keeps each answer once it is there."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.prompts import EOS
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.evals.answers import AnswerFile, identity_of
from vlm_rlaif_jax.evals.benchmarks.choice import LETTERS
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.eval import EvalRun


def run_identity(
  settings: EvalRun, name: str, limit: int, weights: Mapping[str, Any]
) -> str:
  """Returns what stands for all that answers depend on, beside the items.

  Args:
    name: of the benchmark.
    limit: tokens of the longest answer.
    weights: fingerprints of the base and of the adapter.
  """
  return identity_of(
    {
      'benchmark': name,
      'weights': weights,
      'quant': dataclasses.asdict(settings.quant),
      'dtype': settings.model.dtype,
      'frames': settings.data.frames,
      'aspect': settings.data.aspect,
      'template': settings.eval.template,
      'temperature': settings.eval.temperature,
      'tokens': limit,
      'seed': settings.seed if settings.eval.temperature else None,
    }
  )


def answer_all(
  generator: Generator,
  settings: EvalRun,
  items: Sequence[Item],
  file: AnswerFile,
  limit: int,
  *,
  is_choice: bool = False,
) -> None:
  """Answers the items that a file has no answer to; it has all when this returns.

  What is sampled depends on the number of an item, not on what was answered before.

  Args:
    limit: tokens of the longest answer.
    is_choice: whether the log-probabilities of the letters of options are kept, too.
  """
  tokenizer, template = generator.tokenizer, settings.eval.template
  pending = file.pending(items)
  if not pending:
    return
  first = np.cumsum([0, *(len(item.prompts) for item in items)])
  numbers = [
    (n, part) for n in pending for part in range(len(items[n].prompts))
  ]  # of the item, and of its prompt
  encoded = [
    tokens.encode_prompt(tokenizer, items[n].prompts[part], template)
    for n, part in numbers
  ]
  videos = [items[n].video for n, _ in numbers]
  options: dict[int, Sequence[float]] = {}
  if is_choice:
    options = _option_logprobs(generator, items, pending, encoded)
  answers: dict[int, dict[int, np.ndarray]] = {n: {} for n in pending}

  def on_answers(index: int, ids: list[np.ndarray]) -> None:
    number, part = numbers[index]
    answers[number][part] = ids[0]
    item = items[number]
    if len(answers[number]) == len(item.prompts):
      parts = [answers[number][part] for part in range(len(item.prompts))]
      file.append(
        item,
        [prompts.answer_of(tokenizer.decode(part), template) for part in parts],
        [bool(tokenizer.eos in part) for part in parts],
        options.get(number),
      )

  generator.generate(
    encoded,
    videos,
    [int(first[n]) + part for n, part in numbers],
    sampler.Sampling(limit, settings.eval.temperature, eos=tokenizer.eos),
    jax.random.key(settings.seed),
    on_answers=on_answers,
  )


def _option_logprobs(
  generator: Generator,
  items: Sequence[Item],
  pending: Sequence[int],
  encoded: Sequence[np.ndarray],
) -> dict[int, Sequence[float]]:
  """Returns by number of an item the log-probabilities of its letters."""
  letters = [LETTERS[: len(items[n].fields['options'])] for n in pending]
  ids = option_ids(generator.tokenizer, max(map(len, letters)))
  logprobs = generator.option_logprobs(
    encoded, [items[n].video for n in pending], [ids[: len(one)] for one in letters]
  )
  return {n: one.tolist() for n, one in zip(pending, logprobs, strict=True)}


def option_ids(tokenizer: Tokenizer, count: int) -> list[int]:
  """Returns the token ids of the first letters, as an answer begins with them."""
  return [tokenizer.option(letter) for letter in LETTERS[:count]]


def judged_answers(row: Mapping[str, Any], settings: EvalRun) -> tuple[str, ...]:
  """Returns the answers of a row of an `AnswerFile` as the judge reads them."""
  if not settings.eval.keep_special_tokens:
    return tuple(row['answers'])
  ended = row.get('ended', [False] * len(row['answers']))
  return tuple(
    text + EOS if end else text for text, end in zip(row['answers'], ended, strict=True)
  )
