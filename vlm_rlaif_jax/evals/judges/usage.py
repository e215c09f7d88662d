"""What a judge did and what it cost, as it stands beside its numbers."""

import dataclasses
import datetime
import threading
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.evals.records import Judge


@dataclasses.dataclass
class Usage:
  """Counts since the last `collect`; several threads may add to them.

  Attributes:
    calls: requests that were sent, repeated ones included.
    tokens_in, tokens_out: of requests and replies.
    tokens_estimated: of these, tokens of replies that did not state their number.
    retries: requests that were sent again after they failed.
    malformed: replies without a verdict.
    cached: verdicts that were there and not requested.
    versions: of the judge, as it reports them.
    dates: on which the verdicts were given.
  """

  calls: int = 0
  tokens_in: int = 0
  tokens_out: int = 0
  tokens_estimated: int = 0
  retries: int = 0
  malformed: int = 0
  cached: int = 0
  versions: set[str] = dataclasses.field(default_factory=set)
  dates: set[str] = dataclasses.field(default_factory=set)

  def __post_init__(self):
    self._lock = threading.Lock()

  def add(self, **counts: int) -> None:
    """Adds to counts by name."""
    with self._lock:
      for name, count in counts.items():
        setattr(self, name, getattr(self, name) + count)

  def note(self, version: str, date: str) -> None:
    """Notes who gave a verdict, and when; '' is not known."""
    with self._lock:
      self.versions |= {version} - {''}
      self.dates |= {date} - {''}

  def take(self) -> dict[str, Any]:
    """Returns the counts and dates by name, and starts anew."""
    with self._lock:
      dates = sorted(self.dates)
      counts: dict[str, Any] = {
        'date': ' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else '',
        'calls': self.calls,
        'tokens': self.tokens_in + self.tokens_out,
        'tokens_in': self.tokens_in,
        'tokens_out': self.tokens_out,
        'tokens_estimated': self.tokens_estimated,
        'retries': self.retries,
        'malformed': self.malformed,
        'cached': self.cached,
      }
      for name in counts:
        if name not in ('date', 'tokens'):
          setattr(self, name, 0)
      self.dates = set()
    return counts


def today() -> str:
  """Returns the date, ISO."""
  return datetime.date.today().isoformat()


def collect(judge: Judge) -> dict[str, Any]:
  """Returns who a judge is, and what it did since the last call.

  This is what a summary keeps beside the numbers of a benchmark: the identity, `date`,
  `calls`, `tokens`, ...; counts of a judge without `usage` are 0, and its date is
  today's.
  """
  usage: Usage = getattr(judge, 'usage', None) or Usage(dates={today()})
  identity: Mapping[str, str] = judge.identity
  return {**identity, **usage.take()}
