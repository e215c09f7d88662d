"""What the default run gives, seed by seed: before and after RLAIF, and by stage."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.reports.study_pairs import summaries
from vlm_rlaif_jax.settings.checks import bracket

STAGES = ('label', 'reward', 'ppo', 'eval')
POINTS = '{:+.1f}'
Summaries = Mapping[str, Mapping[str, Any]]  # of a seed, by stage


def read(root: pathlib.Path, cell: str, seeds: Sequence[int]) -> dict[int, Summaries]:
  """Returns the summaries of each seed of which all of `STAGES` are done."""
  sizes: dict[str, str] = dict.fromkeys(STAGES, 'tiny')
  runs = {seed: summaries(root / f'{cell}-{seed}', sizes) for seed in seeds}
  return {seed: run for seed, run in runs.items() if run is not None}


def numbers(runs: Mapping[int, Summaries]) -> dict[int, dict[str, dict[str, Any]]]:
  """Returns of each seed's summaries what the tables are of."""
  left_out = {
    *('lineage', 'environment', 'benchmarks', 'rows', 'inputs', 'skipped', 'weights'),
    'artifact',  # a path
  }

  def of_stage(summary: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in summary.items() if name not in left_out}
    if 'benchmarks' in summary:
      rest['benchmarks'] = {'generative': summary['benchmarks']['generative']}
    return rest

  return {
    seed: {stage: of_stage(summary) for stage, summary in run.items()}
    for seed, run in runs.items()
  }


def results(runs: Mapping[int, Summaries]) -> list[str]:
  """Returns what was evaluated, before and after RLAIF, as a table in Markdown."""
  if not runs:
    return []
  first = next(iter(runs.values()))['eval']
  sides = ('sft', 'rlaif')

  def shares(
    title: str, value: Callable[[Mapping[str, Any]], float], part: str = ''
  ) -> list[str]:
    """Returns the row of a share; a part of the questions has intervals, too."""
    pairs = [[value(run['eval'][side]) for side in sides] for run in runs.values()]
    intervals = [
      run['eval']['changes']['sft'][part]['interval'] if part else ()
      for run in runs.values()
    ]
    changes = [
      _with_interval(100 * (after - before), [100 * x for x in interval], POINTS)
      for (before, after), interval in zip(pairs, intervals, strict=True)
    ]
    columns = [
      _list((100 * x for x in side), '{:.1f}') for side in zip(*pairs, strict=True)
    ]
    return [title, *(f'{text} %' for text in columns), f'{", ".join(changes)} points']

  base = _list(100 * run['eval']['base']['qa_accuracy'] for run in runs.values())
  counts = {part: first['sft'][part]['n'] for part in ('long', 'short')}
  rows = [
    [
      f'seeds {", ".join(map(str, runs))}',
      *('after SFT', 'after RLAIF', 'change, paired 95 % interval'),
    ],
    ['---'] * 4,
    shares(
      'directions stated as they are, in long answers',
      lambda r: r['faults']['swapped']['right'],
    ),
    shares(
      f'long answers right ({counts["long"]} questions)',
      lambda r: r['long']['accuracy'],
      'long',
    ),
    shares('claims invented in them', lambda r: r['long']['hallucination_rate']),
    shares('facts recalled in them', lambda r: r['long']['fact_recall']),
    shares(
      f'short answers right ({counts["short"]} questions)',
      lambda r: r['short']['accuracy'],
      'short',
    ),
    shares(f'all questions (base: {base} %)', lambda r: r['qa_accuracy'], 'all'),
    _criteria([run['eval']['benchmarks']['generative'] for run in runs.values()]),
  ]
  return [f'| {" | ".join(row)} |' for row in rows]


def _criteria(benchmarks: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the row of the five criteria of the generative benchmark."""
  title = (
    f"five generative criteria, 0 to 5, world's judge ({benchmarks[0]['items']} items)"
  )
  values = [
    [one['models'][side]['mean']['value'] for one in benchmarks]
    for side in ('sft', 'rlaif')
  ]
  changes = [one['changes']['sft']['mean'] for one in benchmarks]
  texts = [_with_interval(x['change'], x['interval'], '{:+.2f}') for x in changes]
  return [title, *(_list(side, '{:.2f}') for side in values), ', '.join(texts)]


def by_stage(runs: Mapping[int, Summaries]) -> list[str]:
  """Returns what each stage reports, as a table in Markdown."""
  if not runs:
    return []
  rows: dict[str, list[str]] = {
    '': [f'seed {seed}' for seed in runs],
    '---': ['---'] * len(runs),
  }

  def add(title: str, text: Callable[[Summaries], str]) -> None:
    rows[title] = [text(run) for run in runs.values()]

  add(
    'questions labeled, pairs kept',
    lambda run: f'{run["label"]["questions"]:,}, {run["label"]["pairs"]:,}',
  )
  add(
    'labels that are kept and right',
    lambda run: _percent(run['label']['agreement_kept']),
  )
  for title, field in (
    ('reward model on held-out pairs', 'accuracy'),
    ('the same with the video blanked', 'accuracy_without_video'),
    ('the same with the video of another pair', 'accuracy_other_video'),
    ('"the shorter answer" on these pairs', 'accuracy_shorter'),
  ):
    add(
      title,
      lambda run, field=field: (
        _percent(run['reward'][field])
        + (f' of {run["reward"]["held_out"]}' if field == 'accuracy' else '')
      ),
    )
  controls = ('own', 'blank', 'other', 'shorter')
  add(
    'against the truth: with the video; blanked; another; shorter',
    lambda run: (
      '; '.join(f'{100 * run["reward"]["truth"][c]:.1f}' for c in controls)
      + f' % of {run["reward"]["truth"]["n"]}'
    ),
  )
  add(
    'on the NF4 base of PPO',
    lambda run: _percent(run['ppo']['reward_model']['accuracy']),
  )
  for title, field in (
    ('held-out answers before and after PPO: reward', 'held_out/reward'),
    ('the judge, with the narrative', 'held_out/judge'),
    ('the truth', 'held_out/true_quality'),
  ):
    add(title, lambda run, field=field: _before_and_after(run['ppo'], field))
  for title, field in (
    ('descriptions: claims invented', 'hallucination_rate'),
    ('descriptions: facts recalled', 'fact_recall'),
  ):
    add(
      title,
      lambda run, field=field: (
        _list(100 * run['eval'][side][field] for side in ('sft', 'rlaif')) + ' %'
      ),
    )
  return [f'| {" | ".join([title, *texts])} |' for title, texts in rows.items()]


def _before_and_after(ppo: Mapping[str, Any], field: str) -> str:
  """Returns a score of held-out answers before PPO, and of the policy it leaves."""
  history = ppo['history'][field]
  return f'{history["0"]:.2f}, {history[str(ppo["final_iteration"])]:.2f}'


def _percent(share: float) -> str:
  return f'{100 * share:.1f} %'


def _list(values: Any, form: str = '{:.1f}') -> str:
  """Returns numbers as '35.9, 33.8'; equal ones once."""
  texts = [form.format(value) for value in values]
  return texts[0] if len(set(texts)) == 1 else ', '.join(texts)


def _with_interval(value: float, interval: Sequence[float], form: str) -> str:
  """Returns '+15.0 [+10.7, +19.4]'; without an interval, the number alone."""
  text = form.format(value)
  return f'{text} {bracket(interval, form.format)}' if interval else text
