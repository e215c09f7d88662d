"""Finds annotation files and videos of a benchmark, and reads rows of tables.

eval.annotations   a file, or a folder with the files as published, in it or in its
                   folder <benchmark>
eval.videos        'videos/{name}.mp4', 'videos/{name}.*', 'frames/v_{name}/*'
"""

import csv
import fnmatch
import functools
import glob
import io
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data import fields, pictures, rows
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.prompts import unmarked
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark

Row = tuple[str, dict[str, Any]]
"""Where a row is, for messages, and its fields."""

TABLES = {'.csv': ',', '.tsv': '\t'}
PARQUET = '.parquet'


def parquet(name: str, *folders: str) -> tuple[tuple[str, ...], ...]:
  """Returns alternatives of files in which mirrors of a test set have its rows.

  Args:
    name: of the benchmark, if the file was named after it.
    folders: of the mirror, where the file can be, too.
  """
  places = ('', 'data/', *(f'{folder}/' for folder in folders))
  return ((f'{name}{PARQUET}',), *((f'{x}test-*{PARQUET}',) for x in places))


def find(benchmark: Benchmark, place: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Returns the annotation files of a benchmark.

  Args:
    place: a folder, or the only file of the benchmark.

  Raises:
    DataError: none of the alternatives is there; names all.
  """
  if place.is_file():
    return (place,)
  for folder in (place / benchmark.name, place):
    for names in benchmark.files:
      paths = tuple(path for name in names for path in _matches(folder, name))
      present = tuple(path for path in paths if path.is_file())
      if present == paths or (present and not benchmark.needs_all_files):
        return present
  alternatives = ', or '.join(' with '.join(names) for names in benchmark.files)
  raise DataError(
    f'{place}: no annotations of {benchmark.name}; expected {alternatives}, there or '
    f'in its folder {benchmark.name} (config.eval.annotations)'
  )


def _matches(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Returns the files of a name, of several where it is a pattern."""
  return sorted(folder.glob(name)) or [folder / name]


def bare(name: str) -> str:
  """Returns the name of a video without '.mp4' and the like."""
  is_film = name.lower().endswith((*fields.FILMS, '.gif'))
  return os.path.splitext(name)[0] if is_film else name


class Locator:
  """Says where the video of an annotation is, by a template.

  Args:
    root: what the template is relative to.
    template: `config.eval.videos`.
    benchmark: `{benchmark}`; dataset: `{dataset}`.

  Raises:
    DataError: the template has another field, or none.
  """

  def __init__(
    self, root: str | pathlib.Path, template: str, benchmark: str, dataset: str
  ):
    self.root, self.template = pathlib.Path(root), template
    self.names = {'benchmark': benchmark, 'dataset': dataset}
    parts = set(re.findall(r'\{(.*?)\}', template))
    allowed = {'name', 'stem', 'file', *self.names}
    if parts - allowed or not parts & {'name', 'stem', 'file'}:
      raise DataError(
        f'config.eval.videos={template!r}: must hold {{name}}, {{stem}} or {{file}}, '
        'and may hold {dataset} and {benchmark}'
      )

  def __call__(self, name: str) -> Video:
    """Returns the video of a name; one of the file that is missing if none is there."""
    whole = bare(name)
    given = {'file': name, 'name': whole, 'stem': os.path.basename(whole)}
    given |= self.names
    if '*' not in self.template:
      return Video((os.path.normpath(self.template.format(**given)),))
    pattern = self.template.format(**{k: glob.escape(v) for k, v in given.items()})
    folder, ending = os.path.split(pattern)
    folder = folder.replace('[[]', '[').replace('[*]', '*').replace('[?]', '?')
    names = fnmatch.filter(self._listed(folder), ending)
    if ending.endswith('.*'):  # of clip, not of clip.old.mp4
      stem = os.path.basename(self.template[:-2].format(**given))
      names = [one for one in names if os.path.splitext(one)[0] == stem]
      if self._holds_films(folder):  # where a picture is the preview of a video
        names = [one for one in names if not one.lower().endswith(pictures.EXTENSIONS)]
      if not names and (inside := self._pictures(os.path.join(folder, stem))):
        return Video(inside)
    frames = [one for one in names if one.lower().endswith(pictures.EXTENSIONS)]
    others = [one for one in names if one not in frames]
    if len(frames) > 1 and ending.endswith('.*'):
      others = frames  # of one picture in two formats, not pictures of its frames
    if frames and not others:
      return Video(_in_order(folder, frames))
    if len(others) > 1:
      raise DataError(
        f'config.eval.videos={self.template!r}: {len(others)} files are of the video '
        f'{name!r} ({", ".join(sorted(others)[:3])}); name their ending'
      )
    return Video((os.path.join(folder, others[0] if others else ending),))

  def _pictures(self, folder: str) -> tuple[str, ...]:
    """Returns the pictures in a folder in order; () if it has none, or is none."""
    names = self._listed(folder)
    return _in_order(
      folder, [one for one in names if one.lower().endswith(pictures.EXTENSIONS)]
    )

  @functools.lru_cache(maxsize=64)  # noqa: B019 - as long as a benchmark is read
  def _holds_films(self, folder: str) -> bool:
    """Returns whether any file of a folder is a video by its ending."""
    films = (*fields.FILMS, '.gif')
    return any(name.lower().endswith(films) for name in self._listed(folder))

  @functools.lru_cache(maxsize=64)  # noqa: B019 - as long as a benchmark is read
  def _listed(self, folder: str) -> list[str]:
    """Returns the names of the files of a folder; none if it cannot be listed."""
    try:
      with os.scandir(self.root / folder) as entries:
        return [entry.name for entry in entries if entry.is_file()]
    except OSError:
      return []


def _in_order(folder: str, names: Sequence[str]) -> tuple[str, ...]:
  """Returns the paths of pictures in the order of their numbers."""
  return tuple(os.path.join(folder, one) for one in sorted(names, key=_by_number))


def _by_number(name: str) -> tuple:
  """Returns what sorts frame2 before frame10."""
  return tuple(
    (0, int(part), '') if part.isdigit() else (1, 0, part)
    for part in re.split(r'(\d+)', name)
  )


# ----------------------------------------------------------------------------- rows


def read(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a JSON list, of JSON lines, of a table, or of Parquet."""
  if path.suffix.lower() in TABLES:
    return _read_table(path)
  if path.suffix.lower() == PARQUET:
    return _read_parquet(path)
  return [(where, row()) for where, row in rows.read_rows(path)]


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns a JSON file that is an object; raises DataError if it is not."""
  content = rows.read_object(path)
  if not content:
    raise DataError(f'{path}: is an object without content')
  return content


def read_parts(files: Sequence[pathlib.Path]) -> list[Row]:
  """Returns the rows of a file, or of several that are parts of one."""
  return [row for path in files for row in read(path)]


def _read_parquet(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a Parquet file, without columns of bytes, as of videos."""
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise DataError(
      f'{path}: Parquet is read by pyarrow, which is not installed: pip install -e '
      "'.[parquet]'; or write its rows as a JSON list"
    ) from None
  try:
    schema = parquet.read_schema(path)
    names = [one.name for one in schema if not _holds_bytes(pyarrow, one.type)]
    rows = parquet.read_table(path, columns=names).to_pylist()
  except (OSError, pyarrow.ArrowException) as error:
    reason = ' '.join(str(error).split())
    raise DataError(f'{path}: cannot be read as Parquet ({reason})') from None
  if not rows:
    raise DataError(f'{path}: holds no rows')
  return [(f'{path} row {number}', row) for number, row in enumerate(rows)]


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
  """Returns whether a column holds bytes, by itself or in a field of its objects."""
  types = pyarrow.types
  if types.is_struct(kind):
    return any(_holds_bytes(pyarrow, field.type) for field in kind)
  return types.is_binary(kind) or types.is_large_binary(kind)


def _read_table(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a table; raises DataError for a row of another length."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path}: cannot be read as UTF-8 ({error})') from None
  delimiter = TABLES[path.suffix.lower()]
  first = text.partition('\n')[0]
  if '\t' in first and ',' not in first:  # tabs, whatever the name says
    delimiter = '\t'
  reader = csv.reader(io.StringIO(text), delimiter=delimiter)
  header, result = next(reader, []), []
  repeated = next((name for name in header if name and header.count(name) > 1), None)
  if repeated:
    raise DataError(f'{path}: two columns are {repeated!r}; leave one of them')
  for cells in _lines_of(reader, path):
    where = f'{path} line {reader.line_num}'
    if not cells:
      continue
    if len(cells) != len(header):
      raise DataError(
        f'{where}: {len(cells)} columns, but the header has {len(header)}'
      )
    # Rows inside of a cell, up to the next quotation mark, would be left out.
    inside = [line for cell in cells for line in cell.split('\n')[1:]]
    if any(line.count(delimiter) >= len(header) - 1 for line in inside):
      raise DataError(
        f'{where}: a cell holds whole rows; is a quotation mark before it not closed?'
      )
    result.append((where, dict(zip(header, cells, strict=True))))
  if not result:
    raise DataError(f'{path}: holds no rows below a header')
  return result


def _lines_of(reader: Any, path: pathlib.Path) -> Iterator[list[str]]:
  """Yields the cells of each line; raises DataError where a quote is not closed."""
  try:
    yield from reader
  except csv.Error as error:
    raise DataError(
      f'{path} line {reader.line_num}: {error}; is a quotation mark not closed?'
    ) from None


def text(row: Mapping[str, Any], names: str | Sequence[str], where: str) -> str:
  """Returns the text of the first field of `names` that a row has.

  Raises:
    DataError: it has none of them, or what is there is no text, or is blank.
  """
  name, value = _first(row, names, where)
  if not isinstance(value, str):
    raise DataError(f'{where}: {name} must be a text, got {value!r}')
  fields.check_text(value, f'{where}: {name}')
  if fields.is_blank(unmarked(value)):  # the mark of a video alone asks nothing
    raise DataError(f'{where}: {name} is blank')
  return unmarked(value)


def identity(row: Mapping[str, Any], names: str | Sequence[str], where: str) -> str:
  """Returns an id or the name of a video, which may be an integer in the file."""
  name, value = _first(row, names, where)
  if isinstance(value, bool) or not isinstance(value, str | int) or value == '':
    raise DataError(f'{where}: {name} must be a text or an integer, got {value!r}')
  return str(value)


def has(row: Mapping[str, Any], names: Sequence[str]) -> bool:
  """Returns whether a row has one of some fields."""
  return any(row.get(name) is not None for name in names)


def _first(
  row: Mapping[str, Any], names: str | Sequence[str], where: str
) -> tuple[str, Any]:
  """Returns the first field of `names` that is there, with its value."""
  names = (names,) if isinstance(names, str) else names
  for name in names:
    if row.get(name) is not None:
      return name, row[name]
  close = ', '.join(map(repr, row)) or 'none'
  raise DataError(f'{where}: missing field {" or ".join(names)}; it has {close}')
