"""The page: one HTML file with everything in it, which loads nothing."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.reports.page import (
  cards,
  curves,
  document,
  judging,
  overview,
  results,
  run_files,
  samples,
)
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.pictures import BUDGET, Pictures
from vlm_rlaif_jax.reports.page.run_files import ReportError, RunFiles
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.train.console import say

LIMIT = 10_000_000  # bytes of a page
NAME = 'report.html'


def write(
  paths: Sequence[str | pathlib.Path], out: pathlib.Path | None = None
) -> tuple[pathlib.Path, list[str]]:
  """Writes the page of runs.

  Args:
    paths: folders of runs, as `run_files.find` takes them.
    out: where to; None: `report.html` in the folder of the first run.

  Returns:
    where it is, and a line for each file that is missing or broken.
  """
  runs = run_files.find(paths)
  path = out or runs[0].folder / NAME
  text = page(runs)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_atomically(path, text)
  except OSError as error:
    raise ReportError(f'{path}: cannot be written ({error.strerror})') from None
  return path, [line for run in runs for line in run.problems]


def write_after(root: pathlib.Path, names: Sequence[str]) -> None:
  """Writes the page of a run of several stages that ends in an evaluation; says where.

  Args:
    root: `<workdir>/<size>`.
    names: of the stages that have just run.
  """
  if 'eval' not in names or len(names) < 2 or not hosts.is_first():
    return
  try:
    path, problems = write([root])
  except UserError as error:
    say(f'  report: {error}')
    return
  for problem in problems:
    say(f'  report: {problem}')
  say(f'Report: {path}')


def page(runs: Sequence[RunFiles], limit: int = LIMIT) -> str:
  """Returns the page of runs.

  Args:
    limit: bytes of the page; samples are without pictures rather than beyond it.
  """
  pictures = Pictures(min(BUDGET, limit))
  text = _compose(runs, pictures)
  excess = len(text.encode()) - limit
  if excess > 0:
    text = _compose(runs, Pictures(max(pictures.bytes - excess, 0)))
  return text


def _compose(runs: Sequence[RunFiles], pictures: Pictures) -> str:
  """Returns the page of runs with so many pictures."""
  sections = _sections(runs, pictures)
  if pictures.unread:
    name, reason = next(iter(pictures.unread.items()))
    runs[0].say(f'{len(pictures.unread)} videos without pictures, as {name}: {reason}')
  if pictures.left_out:
    runs[0].say(
      f'{pictures.left_out} samples are without pictures, so that the page stays small'
    )
  sections.append(('problems', 'Files that are missing or broken', _problems(runs)))
  title = f'VLM-RLAIF: {", ".join(run.label for run in runs)}'
  heading = 'What the runs show' if len(runs) > 1 else 'What the run shows'
  return document.compose(title, heading, sections)


def _sections(runs: Sequence[RunFiles], pictures: Pictures) -> list[document.Section]:
  """Returns the sections but the last one."""
  truths = [run.attempt('the truth', run.truth) for run in runs]
  audits = [run.attempt('the audit', judging.judged, run) or [] for run in runs]
  chosen = [
    run.attempt('samples', samples.of_run, run, audit, truth) or []
    for run, audit, truth in zip(runs, audits, truths, strict=True)
  ]
  roots = [run.data_root() for run in runs]
  sampled = [run.frames for run in runs]
  tiles = results.headline(runs)
  return [
    (
      'summary',
      'In short',
      tag('div', *tiles, class_='tiles')
      if tiles
      else tag('p', 'SFT and RLAIF have not been evaluated side by side.'),
    ),
    ('runs', 'What was run', _part(runs, 'the overview', overview.build, runs)),
    ('results', 'Results', _part(runs, 'results', results.build, runs)),
    ('curves', 'Training', _part(runs, 'curves', curves.build, runs)),
    (
      'judge',
      'Judge and reward model',
      _part(runs, 'judge and reward model', judging.build, runs, audits),
    ),
    (
      'samples',
      'Samples',
      _part(
        runs,
        'samples',
        cards.build,
        len(runs) > 1,
        chosen,
        roots,
        sampled,
        pictures,
      ),
    ),
  ]


def _part(
  runs: Sequence[RunFiles], what: str, build: Callable[..., Html], *args: Any
) -> Html:
  """Returns a section; a sentence if the files of a run have another form."""
  part = runs[0].attempt(what, build, *args)
  return part or tag('p', 'Left out: files of a run have another form; see below.')


def _problems(runs: Sequence[RunFiles]) -> Html:
  """Returns what could not be read."""
  lines = [line for run in runs for line in run.problems]
  if not lines:
    return tag('p', 'None.')
  return tag('ul', *(tag('li', line) for line in lines), class_='problems')
