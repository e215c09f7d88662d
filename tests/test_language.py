"""The field's English: no dialect names, no named lambdas, sentences, short files.

Each test lists every offender as `file:line name`, so that one run is enough.
"""

import pathlib
from collections.abc import Callable, Iterable

from tests import language
from tests.language import ROOT

FILES = language.files()
PROSE = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def offenders(check: Callable[[pathlib.Path], Iterable], paths=FILES) -> str:
  """Returns what a check finds in each file; empty if nothing."""
  return ''.join(
    f'\n{path.relative_to(ROOT)}:{line} {name}'
    for path in paths
    for line, name in check(path)
  )


def test_no_word_of_the_dialect_is_a_name():
  """A word of `language.DIALECT` is no identifier, nor a part of one."""
  assert not (listing := offenders(language.dialect)), listing


def test_no_lambda_has_a_name():
  assert not (listing := offenders(language.bound_lambdas)), listing


def test_private_names_stay_in_their_module():
  assert not (listing := offenders(language.private_imports)), listing


def test_docstrings_begin_with_a_capital_and_end_with_a_full_stop():
  assert not (listing := offenders(language.unpunctuated_docstrings)), listing


def test_files_are_short():
  assert not (listing := offenders(language.too_long)), listing


def test_spelling_is_american():
  listing = offenders(language.british_spellings, [*FILES, *PROSE])
  assert not listing, listing


def test_documents_that_are_cited_exist():
  tests = sorted((ROOT / 'tests').rglob('*.py'))
  listing = offenders(language.missing_documents, [*FILES, *tests])
  assert not listing, listing


def test_at_most_four_places_ask_for_a_stage_by_its_class():
  """What a stage is stands in its `StageSpec`."""
  listing = offenders(language.stage_checks)
  assert listing.count('\n') <= 4, listing


def test_the_glossary_names_the_list():
  assert 'tests/language.py' in (ROOT / 'docs' / 'glossary.md').read_text()
