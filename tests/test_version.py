"""One version, in every file that states it."""

import pathlib
import re

from vlm_rlaif_jax.version import __version__

ROOT = pathlib.Path(__file__).parents[1]


def test_the_citation_and_the_changelog_have_the_version():
  citation = (ROOT / 'CITATION.cff').read_text()
  assert re.search(rf'^version: {re.escape(__version__)}$', citation, re.MULTILINE)
  sections = re.findall(r'^## \[?(\d[\w.]*)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
  assert sections[0] == __version__
