"""Rewards of stored answers by a reward model, kept one by one.

A row is used again only if the reward model, the question, the answer and the video are
the same, with the contents of its files. Rewards have no scale of their own: their
differences between models say something, and only as far as the reward model can be
trusted.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.evals.answers import read_rows, repair
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.inference.reward_scorer import RewardScorer
from vlm_rlaif_jax.settings.eval import EvalRun

Rows = Sequence[Mapping[str, Any]]


def identity_of(settings: EvalRun, model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what rewards depend on, beside what is scored.

  Args:
    model: of the reward model.
  """
  return {
    **model,
    'quant': dataclasses.asdict(settings.quant),
    'dtype': settings.model.dtype,
    'frames': settings.data.frames,
    'aspect': settings.data.aspect,
  }


def file_name(model: str) -> str:
  """Returns the name of the file of rewards of a model's answers."""
  return f'rewards_{model}.jsonl'


def score(
  scorer: RewardScorer,
  items: Sequence[Item],
  rows: Rows,
  identity: Mapping[str, Any],
  path: pathlib.Path,
  reuses: bool = True,
) -> list[float]:
  """Returns the reward of each answer; NaN where it does not fit the reward model.

  Args:
    rows: of an `AnswerFile`, in the order of the items.
    identity: of the reward model, and of how it is computed.
    path: where rewards are appended, and from where those that are there are read.
    reuses: False: those that are there are dropped.
  """
  keys = [
    _key({**identity, 'contents': scorer.contents(item.video)}, item, row)
    for item, row in zip(items, rows, strict=True)
  ]
  rewards = _stored(path, reuses)
  hosts.agree({f'rewards in {path}': lambda: sorted(rewards)})
  pending = [i for i, key in enumerate(keys) if key not in rewards]

  def keep(number: int, reward: float | None, error: str = '') -> None:
    rewards[keys[number]] = math.nan if reward is None else reward
    row = {'key': items[number].key, 'digest': keys[number], 'reward': reward}
    if hosts.is_first():
      _append(path, {**row, 'error': error} if error else row)

  sequences, fitting = [], []
  for number in pending:
    item, row = items[number], rows[number]
    ids = scorer.encode(item.prompts[0], row['answers'][0], row['ended'][0])
    try:
      scorer.length(ids, item.video)
    except ValueError as error:
      keep(number, None, str(error))
      continue
    sequences.append(ids)
    fitting.append(number)
  scorer.score(
    sequences,
    [items[number].video for number in fitting],
    lambda index, reward: keep(fitting[index], reward),
  )
  return [rewards[key] for key in keys]


def _key(identity: Mapping[str, Any], item: Item, row: Mapping[str, Any]) -> str:
  """Returns what stands for all that a reward depends on."""
  content = [
    dict(identity),
    list(item.video.paths),
    list(item.video.clip or ()),
    item.prompts[0],
    row['answers'][0],
    row['ended'][0],
  ]
  text = json.dumps(content, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stored(path: pathlib.Path, reuses: bool) -> dict[str, float]:
  """Returns rewards by digest; drops a line that a kill cut short, or all."""
  if hosts.is_first():
    path.parent.mkdir(parents=True, exist_ok=True)
    repair(path)
    if not reuses:
      path.unlink(missing_ok=True)
  hosts.barrier(f'rewards {path}')
  rewards = {}
  for row in read_rows(path):
    reward = row.get('reward')
    if isinstance(row.get('digest'), str) and isinstance(reward, int | float | None):
      rewards[row['digest']] = math.nan if reward is None else float(reward)
  return rewards


def _append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
  """Writes a row, on disk before it returns."""
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(row) + '\n')
    file.flush()
    os.fsync(file.fileno())
