"""Folders that a conversion may replace, and those that it must not."""

import os
import shutil

import pytest

from tests.weights import checkpoints
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.weights import conversion, folders
from vlm_rlaif_jax.weights.conversion import Request

OVER = Request(to='llava', overwrite=True)


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  return checkpoints.write_base(tmp_path_factory.mktemp('out') / 'ours')


def files(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def refused(source, out, message, request=OVER):
  """One line, and everything on the disk as it was."""
  root = source.parent
  before = files(root)
  with pytest.raises(UserError, match=message) as caught:
    conversion.convert(source, out, request)
  assert '\n' not in str(caught.value)
  assert files(root) == before


@pytest.mark.parametrize('out', ['in.part', '.', 'in.part/deep/er', 'in', '..'])
def test_out_that_is_above_in_or_equal_to_what_is_read(ours, tmp_path, out):
  root = tmp_path / 'root'
  source = shutil.copytree(ours, root / 'in.part')
  refused(source, root / out, 'is read, and one contains the other')


def test_what_a_stage_stands_on_is_not_written_over(ours, tmp_path):
  """Base and SFT stage are named in the artifact, not on the command line."""
  base = shutil.copytree(ours, tmp_path / 'base')
  checkpoints.write_adapter(tmp_path / 'lora')
  checkpoints.write_projector(tmp_path / 'lora' / 'non_lora_trainables.bin', 'model.')
  sft = tmp_path / 'tuned'
  conversion.convert(tmp_path / 'lora', sft, Request(base=str(base)))
  request = Request(base=str(base), sft=str(sft))
  (tmp_path / 'lora' / 'non_lora_trainables.bin').unlink()
  conversion.convert(tmp_path / 'lora', tmp_path / 'init', request)
  refused(tmp_path / 'init', base, 'is read')
  refused(tmp_path / 'init', sft, 'is read')


def test_overwrite_replaces_outputs_only(ours, tmp_path):
  for name in ('notes', 'config', 'run'):
    (tmp_path / name).mkdir()
  (tmp_path / 'notes' / 'thesis.tex').write_text('x')
  (tmp_path / 'config' / 'config.json').write_text('{}')
  (tmp_path / 'file').write_text('x')
  checkpoints.write_adapter(tmp_path / 'lora')
  conversion.convert(tmp_path / 'lora', tmp_path / 'stage', Request(base=str(ours)))
  shutil.copytree(tmp_path / 'stage', tmp_path / 'run', dirs_exist_ok=True)
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{}')
  source = shutil.copytree(ours, tmp_path / 'ours')
  for name in ('notes', 'config', 'file', 'run'):
    refused(source, tmp_path / name, 'not an earlier output')
  (tmp_path / 'empty').mkdir()
  for name in ('stage', 'empty', 'stage'):  # then what was written the first time
    conversion.convert(source, tmp_path / name, OVER)
    assert (tmp_path / name / 'config.json').is_file()
    assert not (tmp_path / name / 'artifact').exists()


def test_the_old_folder_stays_until_the_new_one_is_in_place(tmp_path, monkeypatch):
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'old').write_text('x')

  def stopped(source, target):
    assert (tmp_path / 'out.old' / 'old').is_file()
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', stopped)
    with (
      pytest.raises(KeyboardInterrupt),
      folders.atomic_folder(out, replace=True) as part,
    ):
      (part / 'new').write_text('y')
  assert files(tmp_path) == {'out/old': b'x'}
  with folders.atomic_folder(out, replace=True) as part:
    (part / 'new').write_text('y')
  assert files(tmp_path) == {'out/new': b'y'}


def test_a_link_is_followed(ours, tmp_path):
  (tmp_path / 'disk' / 'out').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'out')
  conversion.convert(ours, tmp_path / 'link', OVER)
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'disk' / 'out' / 'config.json').is_file()
  assert not (tmp_path / 'disk' / 'out.old').exists()
