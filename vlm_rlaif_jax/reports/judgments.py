"""Tables of what judges say: numbers with judge, date and interval, and agreement.

Nothing here loads JAX.
"""

import functools
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.settings.checks import bracket, percent

_MODELS = ('base', 'sft', 'init', 'rlaif')
_SHARES = ('accuracy',)  # metrics in percent


def table(name: str, entry: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a benchmark: who judged, models by metrics, and changes."""
  models: Mapping[str, Mapping[str, Mapping[str, Any]]] = entry['models']
  metrics = list(dict.fromkeys(metric for one in models.values() for metric in one))
  unscored = sum(
    one[metric]['unscored']
    for one in models.values()
    for metric in one
    if metric != 'score'  # of the same verdicts as accuracy
  )
  lines = [
    f'{name}: {entry["items"]} items about {entry["videos"]} videos, '
    f'{unscored} verdicts unscored'
  ]
  lines += [f'  {judge_line(entry["judge"])}']
  lines += [f'  {"":<8}' + ''.join(f'{metric:>26}' for metric in metrics)]
  order = [*_MODELS, *(model for model in models if model not in _MODELS)]
  for model in order:
    if model in models:
      cells = (_cell(metric, models[model].get(metric)) for metric in metrics)
      lines += [f'  {model:<8}' + ''.join(f'{cell:>26}' for cell in cells)]
  for model in order:
    for metric, one in models.get(model, {}).items():
      if one['unscored']:
        low, high = (_number(metric, one[bound]) for bound in ('low', 'high'))
        total = one['n'] + one['unscored']
        lines += [
          f'  {model} {metric}: {one["unscored"]} of {total} unscored; over all, '
          f'{low} to {high}'
        ]
  for control, changes in entry['changes'].items():
    for metric, change in changes.items():
      lines += [
        f'  {metric}, change {control} -> rlaif: {_change(metric, change)}, '
        f'n={change["n"]}'
      ]
  for control, one in entry.get('wins', {}).items():
    lines += [f'  rlaif against {control}: {_win_rate(one)}']
  return lines


def _win_rate(one: Mapping[str, Any]) -> str:
  """Returns how often RLAIF is better, and how sure that is."""
  if one['value'] is None:
    return f'n/a, {one["unscored"]} unscored'
  interval = bracket(one['interval'], percent)
  return (
    f'wins {percent(one["value"])} {interval}, n={one["n"]}: '
    f'{one["wins"]} wins, {one["ties"]} ties, {one["losses"]} losses; both orders '
    f'agree in {percent(one["order_agreement"])}, {one["unscored"]} unscored'
  )


def judge_line(judge: Mapping[str, Any]) -> str:
  """Returns who judged, when, and what it cost."""
  parts = [f'judge {judge["name"]}', f'version {judge["version"]}']
  parts += [f'prompt {judge["prompt"]}'] if judge['prompt'] else []
  parts += [judge['date']] if judge['date'] else []
  if judge.get('calls') or judge.get('cached'):
    parts += [f'{judge["calls"]} requests, {judge["tokens"]} tokens']
  for name in ('retries', 'malformed', 'cached'):
    parts += [f'{judge[name]} {name}'] if judge.get(name) else []
  return ', '.join(parts)


def agreement_table(result: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the agreement of two judges."""
  first, second = result['judges']
  lines = [f'agreement of {first} and {second}']
  columns = ('n', 'equal', 'kappa', 'weighted kappa', 'spearman', 'means', 'unscored')
  lines += [f'  {"":<26}' + ''.join(f'{column:>16}' for column in columns)]
  for benchmark, entry in result['benchmarks'].items():
    for criterion, one in entry['criteria'].items():
      means = ' '.join(_decimal(mean) for mean in one.get('means', ()))
      cells = [
        str(one['n']),
        percent(one.get('equal')),
        *(_decimal(one.get(key)) for key in ('kappa', 'weighted_kappa', 'spearman')),
        means or 'n/a',
        ' '.join(map(str, one['unscored'])),
      ]
      title = f'{benchmark} {criterion}'
      lines += [f'  {title:<26}' + ''.join(f'{cell:>16}' for cell in cells)]
  for benchmark, entry in result['benchmarks'].items():
    for control, metrics in entry['conclusions'].items():
      for metric, one in metrics.items():
        lines += _conclusion(f'{benchmark} {metric}', control, metric, one)
    if entry.get('former'):
      lines += [
        f'  {benchmark}: {entry["former"]} verdicts on former answers are left out; '
        'python -m launch.eval rejudge asks again'
      ]
  return lines


def _conclusion(
  title: str, control: str, metric: str, one: Mapping[str, Any]
) -> list[str]:
  """Returns the line of a change by two judges."""
  by_judge = [
    f'{_change(metric, change)} ({change["direction"]})' for change in one['changes']
  ]
  verdict = 'the same by both' if one['same'] else 'depends on the judge'
  difference = _change(metric, {**one, 'change': one['difference']})
  return [
    f'  {title}, change {control} -> rlaif: {"; ".join(by_judge)}: {verdict}; '
    f'difference {difference}, n={one["n"]}'
  ]


def audit_table(result: Mapping[str, Any]) -> list[str]:
  """Returns the lines of an audit; the first two scores should be near 5 and 0."""
  lines = [judge_line(result['judge'])]
  twice = result['repeated']
  if twice['calls']:
    lines += [f'  once more: {twice["calls"]} requests, {twice["tokens"]} tokens']
  columns = ('reference', 'shuffled', 'twice equal', 'kappa', 'unscored')
  lines += [f'  {"":<14}' + ''.join(f'{column:>14}' for column in columns)]
  for criterion, one in result['criteria'].items():
    repeated = one['self_agreement']
    unscored = one['reference']['unscored'] + one['shuffled']['unscored']
    cells = [
      _decimal(one['reference']['score']),
      _decimal(one['shuffled']['score']),
      percent(repeated.get('equal')),
      _decimal(repeated.get('kappa', repeated.get('weighted_kappa'))),
      str(unscored + sum(repeated['unscored'])),
    ]
    lines += [f'  {criterion:<14}' + ''.join(f'{cell:>14}' for cell in cells)]
  return lines


def _cell(metric: str, one: Mapping[str, Any] | None) -> str:
  """Returns a number with its interval."""
  if one is None or one['value'] is None:
    return 'n/a'
  text_of = functools.partial(_number, metric)
  return f'{text_of(one["value"])} {bracket(one["interval"], text_of)}'


def _number(metric: str, value: float) -> str:
  return percent(value) if metric in _SHARES else _decimal(value)


def _decimal(value: float | None) -> str:
  return 'n/a' if value is None else f'{value:.2f}'


def _change(metric: str, change: Mapping[str, Any]) -> str:
  """Returns a change with its interval."""
  text_of = ('{:+.1%}' if metric in _SHARES else '{:+.2f}').format
  return f'{text_of(change["change"])} {bracket(change["interval"], text_of)}'
