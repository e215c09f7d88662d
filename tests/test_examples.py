"""What is in `examples/` runs, as on a reader's laptop."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from examples import figure
from vlm_rlaif_jax.data.world import build
from vlm_rlaif_jax.settings.build import UserError, flatten
from vlm_rlaif_jax.settings.sections import WorldConfig

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


@pytest.mark.slow
def test_the_figure_is_drawn_from_what_a_run_left(tmp_path):
  """Of its own world, and of answers to one question, in whatever order they are."""
  own = WorldConfig(sft=1, preference=1, rl=1, test=2)
  world, *_ = (
    build.build(tmp_path, dataclasses.replace(own, seed=seed), 12, progress=False)
    for seed in (own.seed, 1, 2)
  )
  rows = json.loads((world / 'eval' / 'describe.json').read_text())
  (tmp_path / 'eval').mkdir()
  for model, text in (('sft', 'First the pink dog stays.'), ('rlaif', '')):
    lines = [json.dumps({**row, 'prediction': text or row['answer']}) for row in rows]
    lines = lines[::-1] if model == 'rlaif' else lines
    (tmp_path / 'eval' / f'describe_{model}.jsonl').write_text('\n'.join(lines) + '\n')
  lineage = flatten(own, 'world.') | {'data.frames': 12}
  summary = json.dumps({'lineage': lineage})
  (tmp_path / 'eval' / 'summary.json').write_text(summary)
  command = [sys.executable, '-m', 'examples.figure', f'--run={tmp_path}']
  out = tmp_path / 'figure.png'
  done = subprocess.run(
    [*command, f'--out={out}'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '2 only by RLAIF, 0 only by SFT' in done.stdout
  with Image.open(out) as picture:
    assert picture.width == 1640


def test_answers_to_other_questions_are_no_pairs(tmp_path):
  (tmp_path / 'eval').mkdir()
  for model, key in (('sft', 'a'), ('rlaif', 'b')):
    line = json.dumps({'question_id': key, 'prediction': ''})
    (tmp_path / 'eval' / f'describe_{model}.jsonl').write_text(line)
  with pytest.raises(UserError, match=r'rlaif\.jsonl 1, 0 of them the same'):
    figure.paired(tmp_path)
