"""The numbers of benchmarks in the terminal: models side by side, and the changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.settings.checks import bracket
from vlm_rlaif_jax.settings.eval import MODELS

WIDTH = 26  # of a column
PREFERRED = 4  # columns of a table
FEW = 3  # benchmarks that have a table each
# 'score' is of the verdicts of 'accuracy', which are counted there.
NO_VERDICTS = ('score', 'reward')


def lines(summary: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a table a benchmark, or of one of many; none of none.

  Args:
    summary: of the stage eval.
  """
  benchmarks = summary.get('benchmarks') or {}
  if len(benchmarks) > FEW:
    return ['', *_overview(benchmarks)]
  result = []
  for name, entry in benchmarks.items():
    result += ['', *_table(name, entry)]
  return result


def _overview(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a row a benchmark with its first number, the changes, and the judges."""
  models = [m for m in MODELS if any(m in e['models'] for e in benchmarks.values())]
  head = f'{"benchmark":<18}{"number":<20}{"items":>14}'
  rows = [
    f'{head}{"".join(f"{model:>9}" for model in models)}'
    f'{"sft -> rlaif [95 % interval]":>30}'
  ]
  judges = {}
  for name, entry in benchmarks.items():
    present = {metric for numbers in entry['models'].values() for metric in numbers}
    metric = next((one for one in entry['headline'] if one in present), '')
    is_score = metric in set(entry.get('scores', ()))
    cells = ''.join(
      f'{_number(entry["models"].get(model, {}).get(metric), is_score).split()[0]:>9}'
      for model in models
    )
    change = _change(entry.get('changes', {}).get('sft', {}).get(metric), is_score)
    items = f'{entry["items"]:,} of {entry["of"]:,}'
    rows.append(f'{name:<18}{metric:<20}{items:>14}{cells}{change:>30}')
    if entry.get('judge'):
      judges.setdefault(_judge(entry), []).append(name)
  rows += [f'{judge}: {", ".join(names)}' for judge, names in judges.items()]
  return [*rows, 'All numbers with their intervals: summary.json and the report.']


def _table(name: str, entry: Mapping[str, Any]) -> list[str]:
  """Returns the lines of one benchmark."""
  models = entry['models']
  present = {metric for numbers in models.values() for metric in numbers}
  columns = [one for one in entry['headline'] if one in present][:PREFERRED]
  scores = set(entry.get('scores', ()))
  parts: list[tuple[str, list[str], list[str]]] = [('', columns, [])]
  for model in (one for one in MODELS if one in models):
    cells = [_number(models[model].get(one), one in scores) for one in columns]
    parts.append((model, cells, []))
  for control, change in entry.get('changes', {}).items():
    cells = [_change(change.get(one), one in scores) for one in columns]
    parts.append((f'{control} -> rlaif', cells, _further(control, change)))
  width = max(WIDTH, 2 + max((len(c) for _, part, _ in parts for c in part), default=0))
  rows = [_scope(name, entry)]
  for title, cells, further in parts:
    rows.append(f'{title:<16}' + ''.join(f'{cell:>{width}}' for cell in cells))
    rows += further
  return rows + _examples(entry.get('examples', ()))


def _scope(name: str, entry: Mapping[str, Any]) -> str:
  """Returns how many items of how many were asked, and who judged them when."""
  text = (
    f'{name}: {entry["items"]:,} of {entry["of"]:,} items, {entry["videos"]} videos'
  )
  missing = entry.get('missing') or ()
  if missing:
    text += f', {len(missing):,} videos missing'
  if scorer := entry.get('reward_model'):
    text += f'; reward ± standard error by {scorer["folder"]} ({scorer["weights"]})'
  return f'{text}; {_judge(entry)}' if entry.get('judge') else text


def _judge(entry: Mapping[str, Any]) -> str:
  """Returns who judged the answers and when, and how many verdicts could not be had."""
  judge = entry['judge']
  text = f'judge {judge["name"]} {judge["version"]}, {judge["date"]}'
  unscored = sum(
    number.get('unscored', 0)
    for numbers in entry['models'].values()
    for name, number in numbers.items()
    if name not in NO_VERDICTS
  )
  return f'{text}, {unscored} verdicts missing' if unscored else text


def _number(number: Mapping[str, Any] | None, is_score: bool) -> str:
  """Returns a number with its interval."""
  if not number or number['value'] is None:
    return 'n/a'
  text_of = ('{:.2f}' if is_score else '{:.1%}').format
  error = number.get('standard_error')
  error = '' if error is None else f' ± {error:.2f}'
  return f'{text_of(number["value"])}{error} {bracket(number["interval"], text_of)}'


def _change(change: Mapping[str, Any] | None, is_score: bool) -> str:
  """Returns a change with its interval."""
  if not change:
    return ''
  text_of = ('{:+.2f}' if is_score else '{:+.1%}').format
  return f'{text_of(change["change"])} {bracket(change["interval"], text_of)}'


def _further(control: str, change: Mapping[str, Any]) -> list[str]:
  """Returns a line with wins and with the share of answers that differ."""
  parts = []
  if rate := change.get('win_rate'):
    parts.append(f'wins {_number(rate, is_score=False)}, n={rate["n"]}')
  if differs := change.get('changed'):
    text = _number({**differs, 'value': differs['change']}, is_score=False)
    parts.append(f'answers that differ {text}, n={differs["n"]}')
  return [f'  {control} -> rlaif: {"; ".join(parts)}'] if parts else []


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the lines of a few questions with every answer."""
  rows = []
  for example in examples:
    rows += [
      f'  {example["video_name"]}: {example["question"]}',
      f'    {"reference":<10}{example["reference"]}',
      *(f'    {model:<10}{text}' for model, text in example['answers'].items()),
    ]
  return rows
