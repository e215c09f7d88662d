"""The head of the table of a run: the planted fault, and what of it RLAIF repaired."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.settings.checks import bracket, percent
from vlm_rlaif_jax.settings.sections import LONG_KINDS

NAMES = ('sft', 'init', 'rlaif')
MILLIONS = {'tiny': 2, 'small': 8}  # parameters of the networks of the built-in world


def lines(summary: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the table; none unless SFT and RLAIF were evaluated on facts.

  Args:
    summary: of the stage eval.
  """
  names = [name for name in NAMES if 'faults' in summary.get(name, {})]
  if not {'sft', 'rlaif'} <= set(names) or 'long' not in summary['sft']:
    return []
  results = {name: summary[name] for name in names}
  changes = summary.get('changes', {}).get('sft', {})
  head = f'{"long answers":<34}' + ''.join(f'{name:>9}' for name in names)
  return [
    '',
    *planted_faults(summary.get('lineage', {})),
    '',
    f'{head}{"change [95 % interval]":>28}',
    *_fault_rows(summary.get('lineage', {}), results),
    _row('all right', results, lambda r: r['long']['accuracy'], changes.get('long')),
    *(
      _row(
        f'  {kind}', results, lambda r, k=kind: r['qa_by_kind'][k], changes.get(kind)
      )
      for kind in LONG_KINDS
      if kind in summary['sft']['qa_by_kind']
    ),
    _row('claims invented', results, lambda r: r['long']['hallucination_rate']),
    _row('facts recalled', results, lambda r: r['long']['fact_recall']),
    _row(
      'short answers right',
      results,
      lambda r: r['short']['accuracy'],
      changes.get('short'),
    ),
    *_worst_kind(changes, summary['sft']['qa_by_kind']),
    'What to look for: the planted fault shrinks, and short answers stay as they are.',
    *_network(summary.get('lineage', {})),
  ]


def _network(lineage: Mapping[str, Any]) -> list[str]:
  """Returns a sentence about how small a network of the built-in world is."""
  millions = MILLIONS.get(lineage.get('model.name', ''))
  if millions is None:
    return []
  return [
    f"These are margins of a network of {millions} million parameters, not the paper's."
  ]


def planted_faults(lineage: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each fault that the world of a run has in its SFT data.

  Args:
    lineage: of the summary; settings by dotted name.
  """
  both = lineage.get('world.flip_axes') == 'both'
  directions = 'left and right swapped' + (', and up and down' if both else '')
  texts = {
    'world.flip_rate': f'of the long answers have {directions} (a video was turned, '
    'and its text was not)',
    'world.motion_bias': 'of "stays" are reported as motions',
    'world.phantom_rate': 'of descriptions have an object that is not there',
  }
  faults = [
    f'{share:.0%} {text}'
    for name, text in texts.items()
    if (share := lineage.get(name))
  ]
  if not faults:
    return ['No fault is planted in the SFT data: there is nothing to repair.']
  return ['Planted in the SFT data, and never corrected by a person:'] + [
    f'  {fault}' for fault in faults
  ]


def _fault_rows(lineage: Mapping[str, Any], results: Mapping[str, dict]) -> list[str]:
  """Returns how often the facts of a planted fault are stated as they are.

  Of a model whose answers speak of none of them, that is not known.
  """
  titles = {
    'swapped': ('world.flip_rate', 'directions as they are'),
    'stays': ('world.motion_bias', '"stays" as it is'),
  }

  def right(result: Mapping[str, Any], fault: str) -> float | None:
    one = result['faults'][fault]
    return one['right'] if one.get('facts', 1) else None

  return [
    _row(title, results, functools.partial(right, fault=fault))
    for fault, (setting, title) in titles.items()
    if lineage.get(setting)
  ]


def _row(
  title: str,
  results: Mapping[str, dict],
  value: Callable[[dict], float | None],
  change: Mapping[str, Any] | None = None,
) -> str:
  """Returns a share for each model, and the change from SFT to RLAIF."""
  values = {name: value(result) for name, result in results.items()}
  cells = ''.join(f'{percent(share):>9}' for share in values.values())
  before, after = values['sft'], values['rlaif']
  difference = 'n/a'
  if before is not None and after is not None:
    difference = f'{after - before:+.1%}'
  if change is not None:
    difference += f' {bracket(change["interval"], "{:+.1%}".format)}'
  return f'{title:<34}{cells}{difference:>28}'


def _worst_kind(changes: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
  """Returns the short kind that lost most, if any lost more than a point."""
  short = {
    k: changes[k]['change'] for k in kinds if k in changes and k not in LONG_KINDS
  }
  if not short:
    return []
  worst = min(short, key=short.__getitem__)
  return [f'  the kind that lost most: {worst} {short[worst]:+.1%}']
