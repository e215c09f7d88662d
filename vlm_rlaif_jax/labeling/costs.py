"""What a labeled question takes: seconds, and positions read and written, by part."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from vlm_rlaif_jax.train.profiling.flops import Meter


class Costs:
  """Adds up the parts of labeling, over the questions that this run labels.

  Seconds are by the clock of this host, compilation included.

  Args:
    meter: counts the positions of every batch.
  """

  def __init__(self, meter: Meter):
    self.meter, self.questions = meter, 0
    self.parts: dict[str, dict[str, float]] = {}

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts what is done inside towards a part."""
    start, tokens = time.perf_counter(), self.meter.tokens
    yield
    part = self.parts.setdefault(name, {'seconds': 0.0, 'tokens': 0.0})
    part['seconds'] += time.perf_counter() - start
    part['tokens'] += self.meter.tokens - tokens

  def each(self) -> dict[str, Any]:
    """Returns the means of a question by part and in all; {} of no question."""
    if not self.questions:
      return {}
    means = {
      name: {what: value / self.questions for what, value in part.items()}
      for name, part in self.parts.items()
    }
    total = {
      what: sum(part[what] for part in means.values()) for what in ('seconds', 'tokens')
    }
    return {'questions': self.questions, **means, 'total': total}
