"""What every benchmark has: its files, and how they become items and values.

What a judge is asked about the answers is in `judges.cases`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks.sizes import TEST_SETS, TestSet
from vlm_rlaif_jax.evals.records import Item, Values, Verdict
from vlm_rlaif_jax.inference.text_encoder import EncodedTexts
from vlm_rlaif_jax.settings.eval import EvalRun

Locate = Callable[[str], Video]
"""From the name of a video in an annotation file to where it is, or would be."""

Predictions = Sequence[tuple[str, ...]]
"""For each item its answers, one for each of its prompts."""

Family = Literal['qa', 'generative', 'retrieval', 'action', 'choice', 'own']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
  """What the values of a model are made of, item by item.

  Attributes:
    predictions: the answers of the model.
    verdicts: by criterion, a verdict for each item; {} where there is no judge.
    options: log-probabilities of the letters of each item; () where none are computed.
    rewards: of the answers, by a reward model; () where none scores them.
  """

  predictions: Predictions
  verdicts: Mapping[str, Sequence[Verdict]] = dataclasses.field(default_factory=dict)
  options: Sequence[Sequence[float]] = ()
  rewards: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
  """What scores are computed with, beside the outputs.

  Attributes:
    settings: the run.
    encode_texts: maps texts to unit vectors of CLIP, a `TextEncoder`; None where no
      benchmark of the run compares texts.
  """

  settings: EvalRun
  encode_texts: Callable[[Sequence[str]], EncodedTexts] | None = None


@dataclasses.dataclass(frozen=True)
class Number:
  """A number of a model that is no mean over items, with its 95 % interval.

  Attributes:
    interval: None where it is not known, as of one video.
  """

  value: float
  interval: tuple[float, float] | None
  n: int


def no_numbers(
  items: Sequence[Item], outputs: Outputs, tools: Tools
) -> Mapping[str, Number]:
  """Returns the numbers of a benchmark whose numbers are all means: none."""
  del items, outputs, tools
  return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """The record of a benchmark.

  Attributes:
    name: as in `config.eval.benchmarks`.
    family: whose benchmarks share questions to a judge, metrics and a table.
    dataset: of the videos; `{dataset}` in `config.eval.videos`.
    files: names of the annotation files as published, or patterns of them, below
      `eval.annotations` or its folder `<name>`. Entries are alternatives; the first
      whose files are all there is read.
    needs_all_files: False: the first entry of which any file is there.
    read: (files, locate, settings) -> items, in the order of the files; None where
      they are no rows of annotation files.
    score: (items, outputs, tools) -> by metric, a value an item.
    numbers: (items, outputs, tools) -> what is no mean over items, as a median.
    tokens: the field of `config.eval` with the length of the longest answer.
    best: by metric that is no share, its best value, for the range of what has no
      score; infinity where there is none.
    partial: metrics of some items only, NaN at the others.
    weighted: metrics whose values hold weights, so that only the mean of all says
      anything.
    with_error: metrics whose standard error stands beside the interval.
    headline: the metrics of a table, in its order; others are in the summary only.
    prompts: of an item.
  """

  name: str
  family: Family
  dataset: str
  files: tuple[tuple[str, ...], ...]
  score: Callable[[Sequence[Item], Outputs, Tools], Values]
  read: Callable[[Sequence[pathlib.Path], Locate, EvalRun], list[Item]] | None = None
  numbers: Callable[[Sequence[Item], Outputs, Tools], Mapping[str, Number]] = no_numbers
  needs_all_files: bool = True
  tokens: str = 'open_ended_tokens'
  best: Mapping[str, float] = dataclasses.field(default_factory=dict)
  partial: tuple[str, ...] = ()
  weighted: tuple[str, ...] = ()
  with_error: tuple[str, ...] = ()
  headline: tuple[str, ...] = ()
  prompts: int = 1

  @property
  def test_set(self) -> TestSet:
    """Returns the sizes of the published test set, for the planner."""
    return TEST_SETS[self.name]

  @property
  def encodes_texts(self) -> bool:
    """Returns whether its scores compare texts by CLIP."""
    return self.family in ('retrieval', 'action')


def score_values(verdicts: Sequence[Verdict]) -> list[float]:
  """Returns the score of each verdict, 0 to 5; NaN if it has none."""
  return [math.nan if one.score is None else float(one.score) for one in verdicts]


def correct_values(verdicts: Sequence[Verdict]) -> list[float]:
  """Returns 1.0 for right answers, 0.0 for others; NaN where the judge did not say."""
  return [math.nan if one.correct is None else float(one.correct) for one in verdicts]


def row_of(item: Item) -> dict[str, Any]:
  """Returns what of an item is kept beside its answers, so that it can be scored."""
  return {
    'key': item.key,
    'video_name': item.video_name,
    'paths': list(item.video.paths),
    **({'clip': list(item.video.clip)} if item.video.clip else {}),
    'prompts': list(item.prompts),
    'reference': item.reference,
    'fields': dict(item.fields),
    'location': item.location,
  }
