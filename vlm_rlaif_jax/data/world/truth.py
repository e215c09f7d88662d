"""Ground truth beside a data set, where it has one: how good is an answer, really?

Reads `truth.json`, which the video world writes and no stage trains on. A data set
without the file has no truth, and everything that would report it says so.
"""

import json
import pathlib

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.world import language


class Truth:
  """Scores answers by record id."""

  def __init__(self, records: dict[str, dict]):
    self.records = records

  @classmethod
  def load(cls, path: pathlib.Path) -> 'Truth | None':
    """None where there is no such file; raises DataError for one of another kind."""
    if not path.is_file():
      return None
    try:
      records = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
      records = None
    if not isinstance(records, dict) or not all(
      isinstance(record, dict) and {'facts', 'span', 'phase'} <= record.keys()
      for record in records.values()
    ):
      raise DataError(
        f'{path}: expected {{id: {{facts, span, phase}}}} as the video world writes '
        'it; take it away if it is something else'
      )
    return cls(records)

  def __contains__(self, key: str) -> bool:
    return key in self.records

  def score(self, key: str, answer: str) -> language.Score:
    record = self.records[key]
    facts = [(name, phase, predicate) for name, phase, predicate in record['facts']]
    return language.score_answer(facts, record['span'], record['phase'], answer)

  def is_long(self, key: str) -> bool:
    """Whether the answer is scored by its claims rather than word for word."""
    return bool(self.records[key]['span'])
