"""Stricter than a run: eight simulated devices, no silent broadcasting across ranks.

Two tiers: `pytest -m 'not slow'`, and everything.
"""

import atexit
import collections
import os
import shutil
import tempfile

from tests import xla

os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {xla.FLAGS} '
  '--xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
# Workers of a session, and the commands that its tests start, compile a program once.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # which workers find here
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='vlm_rlaif_jax-')
  atexit.register(
    shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True
  )

import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

NOTICEABLE = 5.0  # seconds of a test, with its fixtures; nothing fails by time


def pytest_collection_modifyitems(items):
  """Whole stages take minutes, so a test of them is slow without a second mark.

  A file is one worker's, and a long one that starts last leaves the others idle: files
  with tests of whole stages come first, then those with the most slow tests.
  """
  weights = collections.defaultdict(collections.Counter)
  for item in items:
    if item.get_closest_marker('pipeline'):
      item.add_marker('slow')
    marks = ('pipeline', 'slow')
    weights[item.path].update(m for m in marks if item.get_closest_marker(m))
  items.sort(key=lambda i: (-weights[i.path]['pipeline'], -weights[i.path]['slow']))


def pytest_terminal_summary(terminalreporter):
  """Names the tests that lack the mark `slow` and took more than a few seconds."""
  seconds = collections.Counter()
  for reports in terminalreporter.stats.values():
    for report in reports:
      if isinstance(report, pytest.TestReport) and 'slow' not in report.keywords:
        seconds[report.nodeid] += report.duration
  noticed = [(name, took) for name, took in seconds.most_common() if took > NOTICEABLE]
  if noticed:
    terminalreporter.section(f'not marked slow, more than {NOTICEABLE:.0f} s')
    for name, took in noticed:
      terminalreporter.write_line(f'{took:6.1f} s  {name}')


@pytest.fixture
def rng():
  return np.random.default_rng(0)
