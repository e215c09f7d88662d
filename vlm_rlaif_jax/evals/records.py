"""What passes between benchmarks, models and judges: items, cases, verdicts, values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vlm_rlaif_jax.data.video import Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """What a benchmark asks about one video.

  Attributes:
    key: id, distinct in its benchmark; predictions and verdicts are kept by it.
    video: what is asked about.
    video_name: as the annotation file names it; intervals resample whole videos.
    prompts: instructions without placeholder, each answered on its own.
    reference: the right answer; '' where scores come from `fields` alone.
    fields: what else scores need, of the annotation file: options, class, captions.
    location: file and row, for messages.
  """

  key: str
  video: Video
  video_name: str
  prompts: tuple[str, ...]
  reference: str = ''
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  location: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One request for a verdict: a criterion, and what it is applied to.

  Attributes:
    key: of the item.
    criterion: 'answer' (right or wrong, and a score), or one of the five of the
      generative benchmark: 'correctness', 'detail', 'context', 'temporal',
      'consistency'; or 'preference': which of two answers to one question is better.
    questions: one, or two phrasings of one for 'consistency'.
    reference: the right answer; '' for 'preference' where none is known.
    predictions: one for each question; two for 'preference', where `correct` says
      whether the first is better, and the score is 5 or 0; a tie is 2.5 and has none.
  """

  key: str
  criterion: str
  questions: tuple[str, ...]
  reference: str
  predictions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a judge says of a case.

  Attributes:
    score: 0 to 5; None if the judge gave none that can be read.
    correct: whether the answer is right; None where the criterion does not ask, or if
      unscored.
    raw: what the judge wrote.
    error: why there is no score; '' if there is one.
  """

  score: float | None = None
  correct: bool | None = None
  raw: str = ''
  error: str = ''


class Judge(Protocol):
  """Whoever gives verdicts."""

  @property
  def identity(self) -> Mapping[str, str]:
    """Name, version and prompt hash: what is written beside every number."""
    ...

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case, unscored ones included, in their order."""
    ...


Values = Mapping[str, Sequence[float]]
"""By metric, a value for each item of a benchmark, in their order; NaN if unscored.

The mean over items is the metric, so weights are in the values: a macro accuracy is a
mean of hits times `items / (classes * items of the class)`.
"""
