"""The notebooks of `examples/` run from top to bottom, as a reader's laptop would."""

import json
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))
SECONDS = 600  # of one cell


def by_notebook(function):
  return pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)(function)


def test_there_is_a_notebook():
  assert NOTEBOOKS


@by_notebook
def test_notebooks_are_kept_without_outputs(path):
  for cell in json.loads(path.read_text())['cells']:
    assert not cell.get('outputs') and not cell.get('execution_count'), cell['id']


@pytest.mark.slow
@by_notebook
def test_notebooks_run_from_top_to_bottom(path, tmp_path):
  """In an empty folder: with the packaged base, without a run."""
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=SECONDS, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute(
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'IPYTHONDIR': str(tmp_path)}
  )
  outputs = [cell.get('outputs', []) for cell in notebook.cells]
  kinds = {output['output_type'] for cell in outputs for output in cell}
  assert kinds == {'stream', 'display_data'}
  pictures = [o for cell in outputs for o in cell if o['output_type'] == 'display_data']
  assert all('image/png' in picture['data'] for picture in pictures)
