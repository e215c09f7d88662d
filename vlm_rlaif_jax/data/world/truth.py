"""Ground truth of a data set that has one: scores answers by the facts of their clips.

The video world writes it as `truth.json`, and no stage trains on it. A data set without
the file has no truth, and what is measured by it is left out of summaries.
"""

import json
import pathlib

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.world import claims


class Truth:
  """Facts of every record, by its id; scores answers to its question."""

  def __init__(self, records: dict[str, dict]):
    self.records = records

  @classmethod
  def load(cls, path: pathlib.Path) -> 'Truth | None':
    """Reads the file; None if there is none.

    Raises:
      DataError: the file is not one that the video world writes.
    """
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
        'it; move the file away if it is something else'
      )
    return cls(records)

  def __contains__(self, key: str) -> bool:
    return key in self.records

  def score(self, key: str, answer: str) -> claims.Score:
    """Scores an answer to the question of a record."""
    record = self.records[key]
    facts = [(name, phase, predicate) for name, phase, predicate in record['facts']]
    return claims.score_answer(facts, record['span'], record['phase'], answer)

  def is_long(self, key: str) -> bool:
    """Returns whether an answer is scored by its claims, not by exact match."""
    return bool(self.records[key]['span'])
