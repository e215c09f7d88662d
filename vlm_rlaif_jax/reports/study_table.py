"""The table of the study: each cell's change from SFT to RLAIF, and what it decides.

Changes are of question by question, their intervals robust to questions that share a
clip or a seed (`study_pairs.over_seeds`).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports import study_pairs
from vlm_rlaif_jax.reports.study_pairs import FINAL, PARTS, REFUSED

# A change is none if its interval is within this of 0: five points of long answers are
# what the default run has to gain at least.
NONE_WITHIN = 0.05


def read(
  root: pathlib.Path, cells: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
  """Returns what has run of each cell: its claim, and the numbers of its seeds."""
  results: dict[str, Any] = {}
  for name, cell in cells.items():
    critic = cell.get('critic', 'tiny')
    rows = [row for seed in seeds if (row := _seed_row(root, name, critic, seed))]
    run = [row['seed'] for row in rows]
    changes = {part: study_pairs.change(root, name, run, part) for part in PARTS}
    refusals = {
      seed: path.read_text()
      for seed in seeds
      if (path := root / f'{name}-{seed}' / REFUSED).is_file()
    }
    results[name] = {**cell, 'seeds': rows, 'refused': refusals, **changes}
  for name, result in results.items():
    if other := compared_with(result):
      both = [{row['seed'] for row in results[n]['seeds']} for n in (name, other)]
      by, common = result.get('by', 'long'), sorted(both[0] & both[1])
      order = (name, other) if 'better_than' in result else (other, name)
      result['lead'] = study_pairs.lead(root, *order, common, by)
    result['verdict'] = verdict(result)
  return results


def with_former(
  results: Mapping[str, Any], former: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns results, of cells that have not run here those of a former study.

  They stay compared with the default run of that study.

  Args:
    former: a `study.json`.
  """
  return {
    name: {**former[name], 'former': True}
    if not (result['seeds'] or result['refused']) and former.get(name, {}).get('seeds')
    else result
    for name, result in results.items()
  }


def compared_with(cell: Mapping[str, Any]) -> str | None:
  """Returns the cell that a claim compares this one with, if it does."""
  return cell.get('worse_than') or cell.get('better_than')


def _seed_row(
  root: pathlib.Path, name: str, critic: str, seed: int
) -> dict[str, Any] | None:
  """Returns the numbers of a run, whose reward model has a size; None: not done."""
  workdir = root / f'{name}-{seed}'
  sizes = {'label': 'tiny', 'reward': critic, 'eval': 'tiny'}
  summaries = study_pairs.summaries(workdir, sizes)
  if summaries is None:
    return None
  evaluation, reward = summaries['eval'], summaries['reward']
  before, after = evaluation['sft']['long'], evaluation['rlaif']['long']
  return {
    'seed': seed,
    'labels_right': summaries['label'].get('agreement_kept'),
    'pairs': reward.get('pairs'),
    'reward_accuracy': reward['accuracy'],
    'reward_accuracy_blind': reward['accuracy_without_video'],
    **{part: study_pairs.change(root, name, [seed], part) for part in PARTS},
    'invented': (before['hallucination_rate'], after['hallucination_rate']),
    'recalled': (before['fact_recall'], after['fact_recall']),
    'held_out': held_out(workdir / 'tiny' / 'ppo' / 'metrics.jsonl'),
  }


def held_out(path: pathlib.Path) -> list[dict[str, float]]:
  """Returns what PPO measured of held-out answers, each with the KL of that policy.

  The KL is that of the next rollout, which the measured policy makes; at the end, that
  of the last one.
  """
  if not path.is_file():
    return []
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  kl = {row['step']: row['kl'] for row in rows if 'kl' in row}
  last = kl[max(kl)] if kl else 0.0
  return [
    {'step': row['step'], 'kl': kl.get(row['step'] + 1, last)}
    | {name: value for name, value in row.items() if name.startswith('held_out/')}
    for row in rows
    if any(name.startswith('held_out/') for name in row)
  ]


def verdict(result: Mapping[str, Any]) -> str:
  """Returns whether a cell's claim holds here, or is not decided.

  It is about what long answers gain from SFT to RLAIF, or about the lead of another
  cell over this one, or of this one over it.
  """
  if not result['seeds']:
    stages = sorted(set(result['refused'].values()))
    return f'{" and ".join(stages)} refused to run' if stages else 'not run'
  other = compared_with(result)
  if not other and result['long'] is None:
    return 'not decided: no long answers'
  if not other:
    return _decide(result['long']['interval'], result['expect'])
  lead = result['lead']
  if lead is None:
    return f'not decided: {other} has not run'
  leader = 'it' if 'better_than' in result else other
  return f'{_decide(lead["interval"], "up")}: {leader} leads by {change_text(lead)}'


def _decide(interval: tuple[float, float], expected: str) -> str:
  """Returns the verdict on a change with this interval."""
  low, high = interval
  if expected == 'same':
    if not low <= 0 <= high:
      return 'does not'
    return 'holds here' if max(-low, high) < NONE_WITHIN else 'not decided'
  if expected == 'down':
    low, high = -high, -low
  if low > 0:
    return 'holds here'
  return 'does not' if high < 0 else 'not decided'


def table(results: Mapping[str, Any]) -> list[str]:
  """Returns the table in Markdown."""
  lines = [
    '| cell | claim | seeds | long answers | short answers | all questions | '
    'RLAIF, all | claims invented | facts recalled | reward model (blind) | verdict |',
    f'|{"---|" * 11}',
  ]
  for name, result in results.items():
    rows = result['seeds']
    cells = [''] * 7
    if rows:
      cells = [
        *(change_text(result[part]) for part in PARTS[:-1]),
        f'{result[FINAL]["change"]:.1%}',
        _from_to([row['invented'] for row in rows]),
        _from_to([row['recalled'] for row in rows]),
        ', '.join(
          f'{row["reward_accuracy"]:.1%} ({row["reward_accuracy_blind"]:.1%})'
          for row in rows
        ),
      ]
    columns = [name, result['claim'], seeds_text(result), *cells, result['verdict']]
    lines.append(f'| {" | ".join(columns)} |')
  return lines


def seeds_text(result: Mapping[str, Any]) -> str:
  """Returns '42, 43', and whether they are of a former study."""
  seeds = ', '.join(str(row['seed']) for row in result['seeds'])
  return f'{seeds}, former study' if result.get('former') else seeds


def change_text(change: Mapping[str, Any] | None) -> str:
  """Returns '+5.0 [2.0, 8.0]', in points; '' where there is no question."""
  if change is None:
    return ''
  low, high = change['interval']
  return f'{100 * change["change"]:+.1f} [{100 * low:.1f}, {100 * high:.1f}]'


def _from_to(pairs: Sequence[tuple[float, float]]) -> str:
  """Returns the means over seeds, before and after."""
  before, after = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
  return f'{before:.1%} → {after:.1%}'
