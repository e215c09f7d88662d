"""Answers to each question, sampled from the tuned model."""

import dataclasses
from collections.abc import Sequence

import jax

from vlm_rlaif_jax.data import readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling.narrative import videos_of
from vlm_rlaif_jax.settings.label import LabelConfig


def answer_sampling(settings: LabelConfig, eos: int) -> sampler.Sampling:
  """Returns how the answers are sampled."""
  return sampler.Sampling(
    settings.response_tokens, settings.temperature, settings.top_p, eos=eos
  )


@dataclasses.dataclass(frozen=True)
class Answer:
  """A sampled answer. `stopped`: it ends, and was not cut at the longest length."""

  text: str
  stopped: bool


def sample_answers(
  generator: Generator,
  settings: LabelConfig,
  items: Sequence[Example],
  numbers: range,
  key: jax.Array,
) -> list[list[Answer]]:
  """Returns `settings.answers` answers to each question.

  Args:
    numbers: of the questions in the whole run; with the key they decide the answers.
  """
  tokenizer = generator.tokenizer
  outputs = generator.generate(
    [readers.encode_question(tokenizer, item) for item in items],
    videos_of(items),
    list(numbers),
    answer_sampling(settings, tokenizer.eos),
    key,
    copies=settings.answers,
  )
  return [
    [Answer(tokenizer.decode(ids), tokenizer.eos in ids) for ids in some]
    for some in outputs
  ]
