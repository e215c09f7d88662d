"""Answers and verdicts of an evaluation on disk.

<run>/eval/<benchmark>/answers_<model>.jsonl            a row an item
<run>/eval/<benchmark>/verdicts_<model>_<judge>.jsonl   a row a case
<run>/eval/<benchmark>/wins_<control>_<judge>.jsonl     two rows an item, one an order
<run>/eval/summary_<judge>.json                         who judged, and the numbers
<run>/eval/agreement_<judge>_<other>.json               how far two judges agree
<run>/eval/audit_<judge>.json                           how far one can be trusted
<run>/eval/judges.jsonl                                 who has which name: `names`

A judge that is not asked again leaves its files beside later answers, so a verdict says
by a digest which answer it is on. One that says none is taken for one on any.

Version 0.1.0 wrote answers as `<run>/eval/qa_<model>.jsonl`; they are read as answers
to the benchmark `qa`.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data.rows import DataError, read_rows
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST, LOWEST
from vlm_rlaif_jax.evals.records import Case, Item, Verdict

_FORMER = ('qa', 'describe')
_TEXTS = ('key', 'video_name', 'reference')
_LISTS = ('prompts', 'answers')


def verdicts_path(
  folder: pathlib.Path, benchmark: str, model: str, judge: str
) -> pathlib.Path:
  """Returns the file of the verdicts of a judge, by its `names.file_name`."""
  return folder / benchmark / f'verdicts_{model}_{judge}.jsonl'


def wins_path(
  folder: pathlib.Path, benchmark: str, control: str, judge: str
) -> pathlib.Path:
  """Returns the file of the preferences of a judge between a control and RLAIF."""
  return folder / benchmark / f'wins_{control}_{judge}.jsonl'


def summary_path(folder: pathlib.Path, judge: str) -> pathlib.Path:
  """Returns the file of who judged, and the numbers."""
  return folder / f'summary_{judge}.json'


def judges_of(folder: pathlib.Path) -> list[str]:
  """Returns the names of the judges whose verdicts are there, as files have them."""
  names = {
    path.stem.removeprefix('verdicts_').partition('_')[2]
    for path in folder.glob('*/verdicts_*.jsonl')
  }
  return sorted(names)


def folder_of(run: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the evaluation of a run; the run may be that folder.

  Raises:
    DataError: there are no answers.
  """
  for folder in (run / 'eval', run):
    if answer_files(folder):
      return folder
  raise DataError(
    f'{run}: no answers of an evaluation; expected '
    f'{run / "eval"}/<benchmark>/answers_<model>.jsonl, which stage eval leaves '
    '(python -m launch.train --config configs/eval.py)'
  )


def answer_files(folder: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
  """Returns the files of answers by benchmark and model."""
  files: dict[str, dict[str, pathlib.Path]] = {}
  for path in sorted(folder.glob('*/answers_*.jsonl')):
    model = path.stem.removeprefix('answers_')
    if '.' not in model:  # answers_<model>.former.jsonl is of another run
      files.setdefault(path.parent.name, {})[model] = path
  for benchmark in _FORMER:
    if benchmark not in files:
      for path in sorted(folder.glob(f'{benchmark}_*.jsonl')):
        model = path.stem.removeprefix(f'{benchmark}_')
        files.setdefault(benchmark, {})[model] = path
  return files


def read_answers(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a file of answers, in the form of today.

  Raises:
    DataError: a field is missing or wrong, or a key is there twice; names file, row
      and field.
  """
  rows, places = [], {}
  for location, row in _whole_rows(path):
    row = _of_today(row)
    for name in _TEXTS:
      if not isinstance(row.get(name), str):
        raise DataError(f'{location}: {name} must be a text, got {row.get(name)!r}')
    for name in _LISTS:
      value = row.get(name)
      if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise DataError(f'{location}: {name} must be a list of texts, got {value!r}')
    if row['key'] in places:
      raise DataError(
        f'{location}: key {row["key"]!r} is also that of {places[row["key"]]}'
      )
    places[row['key']] = location
    rows.append(row)
  return rows


def digest(answers: Sequence[str]) -> str:
  """Returns what stands for the answers to an item."""
  return hashlib.sha256(json.dumps(list(answers)).encode()).hexdigest()[:8]


def digests(
  rows: Sequence[Mapping[str, Any]], items: Sequence[Item] = ()
) -> dict[str, str]:
  """Returns by key the digest of the answers in rows of an `AnswerFile`.

  Args:
    items: whose keys they have, in the same order; (): the rows name them.
  """
  keys = [item.key for item in items] if items else [row['key'] for row in rows]
  return {key: digest(row['answers']) for key, row in zip(keys, rows, strict=True)}


def digest_of_all(answers: Mapping[str, str]) -> str:
  """Returns what stands for the answers of a model to a benchmark, in any order.

  Args:
    answers: of `digests`.
  """
  return digest([f'{key} {one}' for key, one in sorted(answers.items())])


def write_verdicts(
  path: pathlib.Path,
  cases: Sequence[Case],
  verdicts: Sequence[Verdict],
  answers: Mapping[str, str] | None = None,
) -> None:
  """Writes JSON lines, one a case; the file is complete or not there.

  Args:
    answers: of `digests`; None: the verdicts do not say what they are on.
  """
  rows = [
    {
      'key': case.key,
      'criterion': case.criterion,
      'score': verdict.score,
      'correct': verdict.correct,
      'raw': verdict.raw,
      'error': verdict.error,
      **({'answers': answers[case.key]} if answers else {}),
    }
    for case, verdict in zip(cases, verdicts, strict=True)
  ]
  write_rows(path, rows)


def read_verdicts(
  path: pathlib.Path, answers: Mapping[str, str] | None = None
) -> dict[tuple[str, str], Verdict]:
  """Returns verdicts by key and criterion.

  Args:
    answers: of `digests`; verdicts on others, and of items without any, are left out.
      None: all are read.

  Raises:
    DataError: a field is missing or wrong, or a case is there twice.
  """
  verdicts: dict[tuple[str, str], Verdict] = {}
  for location, row in _whole_rows(path):
    texts = [row.get(name) for name in ('key', 'criterion')]
    if not all(isinstance(text, str) for text in texts):
      raise DataError(f'{location}: key and criterion must be texts')
    case = (row['key'], row['criterion'])
    if case in verdicts:
      raise DataError(f'{location}: a second verdict on {case[0]} ({case[1]})')
    verdict = _verdict(row, location)
    there = None if answers is None else answers.get(case[0])
    if answers is None or (there and row.get('answers') in (None, there)):
      verdicts[case] = verdict
  return verdicts


def write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes JSON lines to a file that is complete or not there."""
  write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is complete or not there, also after a kill."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  part.write_text(text, encoding='utf-8')
  part.replace(path)


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns what a file of JSON has; {} if there is none.

  Raises:
    DataError: it is no object of JSON.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return {}
  except (ValueError, RecursionError, OSError) as error:
    raise DataError(f'{path}: cannot be read ({error})') from None
  if not isinstance(content, dict):
    raise DataError(f'{path}: contains a {type(content).__name__}, expected an object')
  return content


def _whole_rows(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
  """Returns the rows of JSON lines; a last line that a kill cut short is left out."""
  rows = read_rows(path)
  result = []
  for number, (location, read) in enumerate(rows):
    try:
      result.append((location, read()))
    except DataError:
      cut = number == len(rows) - 1 and not path.read_bytes().endswith(b'\n')
      if not cut:
        raise
  return result


def _verdict(row: Mapping[str, Any], location: str) -> Verdict:
  score, correct = row.get('score'), row.get('correct')
  error, raw = row.get('error', ''), row.get('raw', '')
  is_number = isinstance(score, int | float) and not isinstance(score, bool)
  if score is not None and not (is_number and LOWEST <= score <= HIGHEST):
    raise DataError(f'{location}: score must be 0 to 5 or null, got {score!r}')
  if correct not in (True, False, None) or not isinstance(correct, bool | None):
    raise DataError(f'{location}: correct must be true, false or null, got {correct!r}')
  if not isinstance(error, str) or not isinstance(raw, str):
    raise DataError(f'{location}: raw and error must be texts')
  if score is None and not error:
    error = 'no score'
  return Verdict(None if score is None else float(score), correct, raw, error)


def _of_today(row: dict[str, Any]) -> dict[str, Any]:
  """Returns a row in the form of today, for one of version 0.1.0."""
  if 'question_id' not in row or 'prediction' not in row:
    return row
  return {
    **row,
    'key': row['question_id'],
    'prompts': [row.get('question')],
    'reference': row.get('answer'),
    'answers': [row['prediction']],
    'ended': [row.get('ended', True)],  # files of 0.1.0 do not say
  }
