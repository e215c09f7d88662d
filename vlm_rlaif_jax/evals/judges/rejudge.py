"""Judges the stored answers of an evaluation; needs neither model nor device."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import agreement
from vlm_rlaif_jax.evals.judges import audit, cases, files, names, scores, wins
from vlm_rlaif_jax.evals.judges.usage import collect
from vlm_rlaif_jax.evals.records import Case, Judge
from vlm_rlaif_jax.settings.build import UserError

Stored = Mapping[str, Mapping[str, list[dict[str, Any]]]]
"""By benchmark and model, the rows of answers."""


def read_stored(
  folder: pathlib.Path, benchmarks: Sequence[str] = (), models: Sequence[str] = ()
) -> Stored:
  """Returns the stored answers that a judge can read.

  Args:
    folder: of the evaluation.
    benchmarks, models: names to choose; none: all.

  Raises:
    DataError: there are none, or none of a name that was chosen.
  """
  stored = files.answer_files(folder)
  judged = {name: paths for name, paths in stored.items() if name in cases.CRITERIA}
  for name in benchmarks:
    if name not in judged:
      reason = 'no judge reads its answers' if name in stored else 'no answers to it'
      raise DataError(
        f'--benchmarks={name}: {reason} in {folder}; choose some of '
        f'{", ".join(judged) or "none"}'
      )
  stored_models = {model: None for paths in judged.values() for model in paths}
  for name in models:
    if name not in stored_models and stored_models:
      raise DataError(
        f'--models={name}: no answers of it in {folder}; choose some of '
        f'{", ".join(stored_models)}'
      )
  result: dict[str, dict[str, list[dict[str, Any]]]] = {}
  for name in benchmarks or judged:
    for model, path in judged[name].items():
      if not models or model in models:
        result.setdefault(name, {})[model] = files.read_answers(path)
  if not result:
    raise DataError(
      f'{folder}: no answers to judge; there are {", ".join(stored) or "none"}, and '
      f'judges read {", ".join(cases.CRITERIA)}'
    )
  return result


def find_records(
  folder: pathlib.Path, path: str = ''
) -> Mapping[str, Mapping[str, Any]] | None:
  """Returns the facts of the clips that a run is about; None if it has none.

  Args:
    folder: of the evaluation.
    path: of `truth.json`; '': that of the data that the summary names, or of the
      built-in world beside the evaluation.
  """
  if path:
    truth = Truth.load(pathlib.Path(path))
    if truth is None:
      raise DataError(f'--truth={path}: no such file')
    return truth.records
  lineage = files.read_object(folder / 'summary.json').get('lineage', {})
  try:
    named = lineage.get('data.root')
    root = (
      pathlib.Path(named) if named else folders.folder_of_run(folder.parent, lineage)
    )
  except UserError as error:
    raise UserError(f'{error}, or name one with --truth=<folder>/truth.json') from None
  truth = Truth.load(root / 'truth.json') if root else None
  return truth.records if truth else None


def form_of(folder: pathlib.Path, benchmark: str) -> cases.Form:
  """Returns how the answers were put to a judge when they were generated."""
  return cases.Form.of(_entries(folder).get(benchmark, {}).get('settings', {}))


def without_form(folder: pathlib.Path, benchmarks: Iterable[str]) -> list[str]:
  """Returns the benchmarks of which nothing says how answers are put to a judge.

  They are put to it as by default: the run has not ended, or is of version 0.1.0.
  """
  entries = _entries(folder)
  return [name for name in benchmarks if 'settings' not in entries.get(name, {})]


def _entries(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what the summary of a run says by benchmark; {} before it has ended."""
  return files.read_object(folder / 'summary.json').get('benchmarks', {})


def rejudge(
  folder: pathlib.Path,
  stored: Stored,
  judge: Judge,
  on_benchmark: Callable[[str, Mapping[str, Any]], None] = lambda name, entry: None,
  preference: bool = False,
) -> dict[str, Any]:
  """Judges stored answers, and leaves verdicts and a summary as it goes.

  Args:
    preference: whether the judge also says which of two models is better.
    on_benchmark: called with the name and the numbers of each.

  Returns:
    `judge`, and `benchmarks` by name, as a summary of stage eval has them. Benchmarks
    of an earlier summary of the same judge stay in it.
  """
  summary: dict[str, Any] = {}
  for benchmark, models in stored.items():
    entry = _judged(folder, benchmark, models, judge, preference)
    # A judge has its name in files once it has given verdicts.
    path = files.summary_path(folder, names.file_name(folder, judge.identity))
    former = {'stage': 'rejudge', 'benchmarks': {}} | files.read_object(path)
    benchmarks = former['benchmarks'] | {benchmark: entry}
    summary = {**former, 'judge': entry['judge'], 'benchmarks': benchmarks}
    files.write_text(path, json.dumps(summary, indent=2) + '\n')
    on_benchmark(benchmark, entry)
  return summary


def keep_former(folder: pathlib.Path, judge: Mapping[str, Any]) -> None:
  """Keeps the numbers of a summary of stage eval that another judge is to replace.

  They go where those of `rejudge` are: `summary_<judge>.json`.

  Args:
    folder: of the evaluation.
    judge: identity of the judge of the summary that is about to be written.
  """
  entries = files.read_object(folder / 'summary.json').get('benchmarks', {})
  judged = {name: one for name, one in entries.items() if one.get('judge')}
  if not judged:
    return
  former = next(iter(judged.values()))['judge']
  if names.identity_of(former) == names.identity_of(judge):
    return
  path = files.summary_path(folder, names.file_name(folder, former))
  summary = {'stage': 'rejudge', 'benchmarks': {}} | files.read_object(path)
  summary |= {'judge': former, 'benchmarks': summary['benchmarks'] | judged}
  files.write_text(path, json.dumps(summary, indent=2) + '\n')


def _judged(
  folder: pathlib.Path,
  benchmark: str,
  models: Mapping[str, list[dict[str, Any]]],
  judge: Judge,
  preference: bool,
) -> dict[str, Any]:
  """Returns the numbers of a benchmark; writes its verdicts."""
  form = form_of(folder, benchmark)
  groups = {
    model: cases.cases_of(benchmark, rows, form) for model, rows in models.items()
  }
  videos = videos_of(models)
  values: dict[str, scores.Scores] = {}
  digests = {model: files.digests(rows) for model, rows in models.items()}
  for model, group in groups.items():
    verdicts = judge.verdicts(group)
    name = names.file_name(folder, judge.identity)
    path = files.verdicts_path(folder, benchmark, model, name)
    files.write_verdicts(path, group, verdicts, digests[model])
    values[model] = scores.scores_of(group, verdicts)
  compared = {}
  if preference:
    compared = _wins(folder, benchmark, groups, judge, videos, digests)
  return {
    'items': len(videos),
    'videos': len(set(videos.values())),
    'judge': collect(judge),
    'models': {name: scores.metrics(one, videos) for name, one in values.items()},
    'changes': scores.changes(values, videos),
    'wins': compared,
    'answers': {name: files.digest_of_all(one) for name, one in digests.items()},
    'settings': form.choices,
  }


def _wins(
  folder: pathlib.Path,
  benchmark: str,
  groups: Mapping[str, Sequence[Case]],
  judge: Judge,
  videos: Mapping[str, str],
  digests: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
  """Returns by control how often RLAIF is better; {} where answers come in pairs."""
  if 'rlaif' not in groups or 'consistency' in cases.CRITERIA[benchmark]:
    return {}
  by_key = {
    model: {case.key: case for case in group} for model, group in groups.items()
  }
  result = {}
  for control in scores.CONTROLS:
    if control in by_key:
      pairs = wins.judge_pairs(judge, by_key[control], by_key['rlaif'])
      name = names.file_name(folder, judge.identity)
      path = files.wins_path(folder, benchmark, control, name)
      both = (digests[model] for model in (control, 'rlaif'))
      files.write_rows(path, wins.rows_of(pairs, *both))
      result[control] = wins.win_rate(pairs, videos)
  return result


def videos_of(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
  """Returns the name of the video of each item that any model answered."""
  return {row['key']: row['video_name'] for rows in models.values() for row in rows}


def compare(
  folder: pathlib.Path, stored: Stored, first: str, second: str
) -> dict[str, Any]:
  """Returns how far two judges agree on stored answers, by benchmark.

  Verdicts on former answers are left out, as those of a judge that was not asked again
  after a model was trained anew.

  Args:
    first, second: names of judges whose verdicts are there.

  Raises:
    DataError: they have no benchmark in common.
  """
  result: dict[str, Any] = {}
  for benchmark, models in stored.items():
    both, left_out = {}, 0
    for model in models:
      paths = [
        files.verdicts_path(folder, benchmark, model, judge)
        for judge in (first, second)
      ]
      if all(path.is_file() for path in paths):
        answers = files.digests(models[model])
        sides = tuple(files.read_verdicts(path, answers) for path in paths)
        left_out += sum(len(files.read_verdicts(path)) for path in paths)
        left_out -= sum(map(len, sides))
        if all(sides):
          both[model] = sides
    if both:
      result[benchmark] = {
        **agreement.of_benchmark(both, videos_of(models)),
        'former': left_out,
        'answers': {
          model: files.digest_of_all(files.digests(models[model])) for model in both
        },
      }
  if not result:
    there = files.judges_of(folder)
    raise DataError(
      f'{folder}: no answers that both {first} and {second} judged, as they are now; '
      'there are verdicts '
      f'of {", ".join(there) or "nobody"} (python -m launch.eval rejudge adds some)'
    )
  return {'judges': [first, second], 'benchmarks': result}


def audited(
  folder: pathlib.Path, stored: Stored, judge: Judge, repeated: Judge
) -> dict[str, Any]:
  """Returns how far a judge can be trusted on the questions of a run.

  Args:
    repeated: the same judge without what the first remembers.
  """
  group: list[Case] = []
  for benchmark, models in stored.items():
    rows = next(iter(models.values()))
    group += cases.cases_of(benchmark, rows, form_of(folder, benchmark))
  criteria = audit.audit(judge, repeated, group)
  return {
    'judge': collect(judge),
    'repeated': collect(repeated),
    'criteria': criteria,
  }
