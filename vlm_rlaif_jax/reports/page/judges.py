"""How far the judges of benchmarks can be trusted: who they are, whether two of them
agree, what the order of two answers is worth, and what they say of known answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.evals.judges import names
from vlm_rlaif_jax.reports.page import axes, former, html, plots, verdicts
from vlm_rlaif_jax.reports.page.benchmarks import NAMES, SHARES
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles
from vlm_rlaif_jax.reports.page.verdicts import Cells

# What a table says of a judge; others are in judges.jsonl.
IDENTITY = ('kind', 'prompt', 'base_url', 'temperature', 'answer_words')


def build(runs: Sequence[RunFiles]) -> list[Html]:
  """Returns the tables and plots that the files of the runs have something for."""
  parts = [
    *(_table(runs, *one) for one in _verdict_tables()),
    _conclusion_plots(runs),
    *(_table(runs, *one) for one in _trust_tables()),
    _margin_plots(runs),
  ]
  return [part for part in parts if part]


Table = tuple[str, str, Sequence[str], Callable[[RunFiles], Iterator[Cells]]]
"""Title, caption, heads of the columns, and what yields the rows of a run."""


def _verdict_tables() -> list[Table]:
  """Returns the tables of who judged, and of two judges on the same answers."""
  return [
    (
      'Who judged',
      'Judges by what they are called in files',
      ['Judge', 'Run', *IDENTITY],
      _identities,
    ),
    (
      'Two judges on the same answers',
      'Agreement of judges',
      ['Benchmark', 'Run', 'Model', 'Judges', 'Both say', 'Agree, %', "Cohen's κ"],
      verdicts.judge_pairs,
    ),
    (
      'Agreement by criterion',
      'Agreement of two judges by criterion, over the answers of all models',
      [
        *('Benchmark', 'Run', 'Criterion', 'Judges', 'n', 'Unscored', 'Equal, %'),
        *("Cohen's κ", 'Weighted κ', "Spearman's ρ", 'Mean scores'),
      ],
      _criteria,
    ),
    (
      'Whether the conclusion depends on the judge',
      'Changes to RLAIF by two judges over the same items',
      ['Change', 'Run', 'Judges', 'By the first', 'By the second', 'Difference', 'So'],
      _conclusions,
    ),
  ]


def _trust_tables() -> list[Table]:
  """Returns the tables of one judge: order, and what is known."""
  return [
    (
      'What the order of two answers is worth',
      'Preferences between two answers, asked in both orders',
      [
        *('Benchmark', 'Run', 'RLAIF against', 'Judge', 'n', 'Wins', 'Ties', 'Losses'),
        *('Both orders agree, %', 'First answer chosen, %'),
      ],
      verdicts.orders,
    ),
    (
      'What judges say of known answers',
      'References as answers, which should score near 5; references of other '
      'questions, near 0; and the same answers judged twice',
      [
        *('Judge', 'Run', 'Criterion', 'References', 'n', 'Shuffled', 'n shuffled'),
        *('Twice equal, %', 'κ', 'Unscored'),
      ],
      _audits,
    ),
  ]


def _table(
  runs: Sequence[RunFiles],
  title: str,
  caption: str,
  head: Sequence[str],
  rows_of: Callable[[RunFiles], Iterator[Cells]],
) -> Html | None:
  """Returns a table with its heading; None where no run has a row."""
  rows: list[Cells] = []
  for run in runs:
    rows += run.attempt(f"table '{title}'", _listed, rows_of, run) or []
  if not rows:
    return None
  if len(runs) == 1:  # whose name says nothing
    place = head.index('Run')
    head = [*head[:place], *head[place + 1 :]]
    rows = [[*row[:place], *row[place + 1 :]] for row in rows]
  return html.join([tag('h3', title), html.table(head, rows, caption)])


def _listed(rows_of: Callable[[RunFiles], Iterator[Any]], run: RunFiles) -> list[Any]:
  """Returns all that is yielded for a run."""
  return list(rows_of(run))


def _identities(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each judge of a run that has left verdicts."""
  for name, identity in names.read(run.folder / 'eval').items():
    yield [name, run.label, *(identity.get(field, '') for field in IDENTITY)]


def _margin_plots(runs: Sequence[RunFiles]) -> Html | None:
  """Returns how far each judge has RLAIF before SFT, item by item, as histograms."""
  drawings = []
  for run in runs:
    margins = run.attempt('margins of judges', verdicts.margins, run) or {}
    for judge, values in margins.items():
      differ = [value for value in values if value]
      title = f'Margins of judge {judge}' if len(runs) == 1 else f'{judge}, {run.label}'
      groups = [
        ('RLAIF better', [value for value in differ if value > 0], 'good'),
        ('SFT better', [value for value in differ if value < 0], 'bad'),
      ]
      note = (
        f'{len(values) - len(differ):,} of {len(values):,} pairs of scores are equal'
      )
      x_title = 'score of RLAIF less that of SFT'
      drawings.append(plots.histogram(title, groups, x_title, note=note))
  drawings = [one for one in drawings if one]
  return tag('div', *drawings, class_='plots') if drawings else None


# ----------------------------------------------------- from agreement_ and audit_ files


def _results(run: RunFiles, pattern: str) -> Iterator[dict[str, Any]]:
  """Yields what `launch.eval agreement` or `audit` left of a run.

  Without benchmarks whose answers are others by now; a line says so.
  """
  for path in sorted((run.folder / 'eval').glob(pattern)):
    result = run.read_json(path)
    if not isinstance(result, dict):
      continue
    others = [
      name
      for name, entry in (result.get('benchmarks') or {}).items()
      if not former.is_current(run, name, entry)
    ]
    if others:
      run.say(f'{path}: {", ".join(others)}: of former answers, and left out')
      rest = {k: v for k, v in result['benchmarks'].items() if k not in others}
      result = {**result, 'benchmarks': rest}
    yield result


def _criteria(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each criterion that two judges applied."""
  for result in _results(run, 'agreement_*.json'):
    judges = ', '.join(result['judges'])
    for benchmark, entry in result['benchmarks'].items():
      for criterion, one in entry['criteria'].items():
        means = ', '.join(f'{mean:.2f}' for mean in one.get('means', ()))
        yield [
          *(benchmark, run.label, criterion, judges, one['n']),
          ', '.join(map(str, one['unscored'])),
          html.share(one.get('equal')),
          *(html.number(one.get(k)) for k in ('kappa', 'weighted_kappa', 'spearman')),
          means,
        ]


def _each_conclusion(
  run: RunFiles,
) -> Iterator[tuple[str, str, str, Sequence[str], Mapping[str, Any]]]:
  """Yields (benchmark, metric, control, judges, comparison) of two judges of a run."""
  for result in _results(run, 'agreement_*.json'):
    for benchmark, entry in result['benchmarks'].items():
      for control, metrics in entry['conclusions'].items():
        for metric, one in metrics.items():
          yield benchmark, metric, control, result['judges'], one


def _title(benchmark: str, metric: str) -> str:
  """Returns 'generic detail', but 'temporal' of what has no other metric."""
  return benchmark if metric in (benchmark, *SHARES) else f'{benchmark} {metric}'


def _conclusions(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each change to RLAIF that two judges measured."""
  for benchmark, metric, control, judges, one in _each_conclusion(run):
    title = f'{_title(benchmark, metric)}, {NAMES.get(control, control)} → RLAIF'
    by_judge = [
      html.join([_change(metric, change), tag('small', f' {change["direction"]}')])
      for change in one['changes']
    ]
    difference = _change(
      metric, {'change': one['difference'], 'interval': one['interval']}
    )
    verdict = 'the same' if one['same'] else tag('strong', 'depends on the judge')
    yield [title, run.label, ', '.join(judges), *by_judge, difference, verdict]


def _change(metric: str, one: Mapping[str, Any]) -> Html | str:
  """Returns a change with its sign and interval; points where it is of a share."""
  text = html.with_interval(one['change'], one['interval'], metric in SHARES)
  return html.join(['+' if one['change'] > 0 else '', text])


def _conclusion_plots(runs: Sequence[RunFiles]) -> Html | None:
  """Returns the changes by two judges, drawn by control, and as shares or as scores."""
  rows: dict[tuple[str, bool], list[tuple[str, list[dict[str, Any]]]]] = {}
  colors: dict[str, int] = {}
  for run in runs:
    listed = run.attempt('changes by two judges', _listed, _each_conclusion, run)
    for benchmark, metric, control, judges, one in listed or ():
      is_share = metric in SHARES
      name = _title(benchmark, metric).removesuffix(' score').removeprefix('generic ')
      group = [
        {
          'value': change['change'] * (100 if is_share else 1),
          'interval': [end * (100 if is_share else 1) for end in change['interval']],
          'color': colors.setdefault(judge, len(colors)),
          'name': judge,
        }
        for judge, change in zip(judges, one['changes'], strict=True)
        if change['interval'] is not None  # as of one video
      ]
      name = name if len(runs) == 1 else f'{name} {run.label}'
      if group:
        rows.setdefault((control, is_share), []).append((name, group))
  drawings = [
    plots.intervals(
      f'{"Accuracy" if is_share else "Scores"}, {NAMES.get(control, control)} → RLAIF',
      group,
      x_title='change in points' if is_share else 'change, scores from 0 to 5',
      zero=True,
      legend=axes.swatches([(judge, f'c{place}') for judge, place in colors.items()]),
      note='the change by each of two judges, with its 95 % interval over videos',
    )
    for (control, is_share), group in rows.items()
  ]
  return tag('div', *drawings, class_='plots') if drawings else None


def _audits(run: RunFiles) -> Iterator[Cells]:
  """Yields a row for each criterion that an audited judge applied."""
  for result in _results(run, 'audit_*.json'):
    judge = result['judge']
    name = f'{judge.get("name")} {judge.get("version", "")}'.strip()
    for criterion, one in result['criteria'].items():
      references, shuffled, twice = (
        one[part] for part in ('reference', 'shuffled', 'self_agreement')
      )
      unscored = references['unscored'] + shuffled['unscored'] + sum(twice['unscored'])
      yield [
        *(name, run.label, criterion),
        *(html.number(references['score']), references['n']),
        *(html.number(shuffled['score']), shuffled['n']),
        html.share(twice.get('equal')),
        html.number(twice.get('kappa', twice.get('weighted_kappa'))),
        unscored,
      ]
