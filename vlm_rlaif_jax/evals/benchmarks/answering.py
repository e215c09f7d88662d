"""Asks one model what a benchmark asks, and keeps each answer once it is there."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.evals.answers import AnswerFile, identity_of
from vlm_rlaif_jax.evals.benchmarks.choice import LETTERS
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.eval import EvalRun


def run_identity(
  settings: EvalRun,
  name: str,
  limit: int | Mapping[str, int],
  weights: Mapping[str, Any],
) -> str:
  """Returns what stands for all that answers depend on, beside the items.

  Args:
    name: of the benchmark.
    limit: tokens of the longest answer; by task, where tasks have limits of their own.
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


@dataclasses.dataclass(frozen=True)
class Request:
  """What one benchmark asks a model.

  Attributes:
    file: where its answers are kept.
    limit: tokens of the longest answer.
    is_choice: whether the log-probabilities of the letters of options are kept, too.
  """

  items: Sequence[Item]
  file: AnswerFile
  limit: int
  is_choice: bool = False

  def prompts(self) -> list['_Prompt']:
    """Returns the prompts of the items that have no answer yet.

    The number of a prompt, which decides what is sampled, counts answered ones.
    """
    first = np.cumsum([0, *(len(item.prompts) for item in self.items)])
    return [
      _Prompt(self, number, part, int(first[number]) + part)
      for number in self.file.pending(self.items)
      for part in range(len(self.items[number].prompts))
    ]


@dataclasses.dataclass(frozen=True)
class _Prompt:
  """One prompt of one item.

  Attributes:
    number: of the item; part: of the prompt in it.
    example_id: of the prompt in its benchmark.
  """

  request: Request
  number: int
  part: int
  example_id: int

  @property
  def item(self) -> Item:
    return self.request.items[self.number]


def answer_all(
  generator: Generator, settings: EvalRun, requests: Sequence[Request]
) -> None:
  """Answers what is asked and not answered; the files have all when this returns.

  Prompts whose answers have the same limit are generated together.
  """
  groups: dict[int, list[_Prompt]] = {}
  for request in requests:
    groups.setdefault(request.limit, []).extend(request.prompts())
  for limit, group in groups.items():
    if group:
      _answer_group(generator, settings, group, limit)


def _answer_group(
  generator: Generator, settings: EvalRun, group: Sequence[_Prompt], limit: int
) -> None:
  """Answers prompts with one limit, and keeps the answers of an item together."""
  tokenizer, template = generator.tokenizer, settings.eval.template
  encoded = [
    tokens.encode_prompt(tokenizer, one.item.prompts[one.part], template)
    for one in group
  ]
  options = _option_logprobs(generator, group, encoded)
  answers: dict[tuple[int, int], dict[int, np.ndarray]] = {}

  def on_answers(index: int, ids: list[np.ndarray]) -> None:
    one = group[index]
    key = (id(one.request), one.number)
    parts = answers.setdefault(key, {})
    parts[one.part] = ids[0]
    if len(parts) < len(one.item.prompts):
      return
    ordered = [parts[part] for part in range(len(parts))]
    one.request.file.append(
      one.item,
      [prompts.answer_of(tokenizer.decode(part), template) for part in ordered],
      [bool(tokenizer.eos in part) for part in ordered],
      options.get(key),
    )

  generator.generate(
    encoded,
    [one.item.video for one in group],
    [one.example_id for one in group],
    sampler.Sampling(limit, settings.eval.temperature, eos=tokenizer.eos),
    jax.random.key(settings.seed),
    on_answers=on_answers,
  )


def _option_logprobs(
  generator: Generator, group: Sequence[_Prompt], encoded: Sequence[np.ndarray]
) -> dict[tuple[int, int], Sequence[float]]:
  """Returns by request and item the log-probabilities of the letters of its options."""
  chosen = [i for i, one in enumerate(group) if one.request.is_choice]
  if not chosen:
    return {}
  counts = [len(group[i].item.fields['options']) for i in chosen]
  ids = option_ids(generator.tokenizer, max(counts))
  sums = np.zeros((len(chosen), len(ids)))
  # Of a letter of several pieces, each after those before it: all that begin alike in
  # one pass.
  for before in dict.fromkeys(one[:n] for one in ids for n in range(len(one))):
    following = {
      letter: one[len(before)]
      for letter, one in enumerate(ids)
      if one[: len(before)] == before and len(one) > len(before)
    }
    sums[:, list(following)] += generator.option_logprobs(
      [np.append(encoded[i], before).astype(np.int32) for i in chosen],
      [group[i].item.video for i in chosen],
      [list(following.values())] * len(chosen),
    )
  return {
    (id(group[i].request), group[i].number): row[:count].tolist()
    for i, row, count in zip(chosen, sums, counts, strict=True)
  }


def option_ids(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
  """Returns the token ids of the first letters, as an answer begins with them."""
  return [tokenizer.option_pieces(letter) for letter in LETTERS[:count]]
