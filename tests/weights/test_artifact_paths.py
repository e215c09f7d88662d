"""Folders of stages from before version 0.1.0, with their former spelling."""

import json
import os

import pytest

from tests import tiny
from tests.weights import checkpoints
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.weights import artifact_paths, artifacts, bases, conversion, readers
from vlm_rlaif_jax.weights.conversion import Request
from vlm_rlaif_jax.weights.errors import ConvertError


def respell(stage):
  """Renames folder and file of an artifact as they were before."""
  os.rename(stage / 'artifact', stage / 'artefact')
  os.rename(stage / 'artefact/artifact.json', stage / 'artefact/artefact.json')


@pytest.fixture
def workdir(root, tmp_path):
  """Stages sft and init of before, with settings of their run."""
  source, base = tmp_path / 'lora', str(root / 'ours')
  checkpoints.write_adapter(source)
  checkpoints.write_projector(source / 'non_lora_trainables.bin', 'model.')
  folder = tmp_path / 'runs'
  conversion.convert(source, folder / 'sft', Request(base=base))
  (source / 'non_lora_trainables.bin').unlink()
  sft = str(folder / 'sft')
  conversion.convert(source, folder / 'init', Request(base=base, sft=sft))
  for stage in ('sft', 'init'):
    respell(folder / stage)
  return folder


def test_the_former_spelling_is_found_where_it_is_the_only_one(workdir):
  path = workdir / 'init' / 'artefact' / 'artefact.json'
  assert artifact_paths.artifact_json(workdir / 'init') == path
  (workdir / 'init' / 'artifact').mkdir()
  assert artifact_paths.artifact_json(workdir / 'init') == path
  new = workdir / 'init' / 'artifact' / 'artifact.json'
  new.write_text('{}')
  assert artifact_paths.artifact_json(workdir / 'init') == new
  expected = workdir / 'nowhere' / 'artifact' / 'artifact.json'
  assert artifact_paths.artifact_json(workdir / 'nowhere') == expected
  summary = artifact_paths.result_path(workdir / 'init', 'summary.json')
  assert summary == workdir / 'init' / 'summary.json'


def test_later_stages_load_it(root, workdir):
  base = bases.load(str(root / 'ours'), tiny.CFG)
  tuned = bases.tuned(base, workdir / 'sft', tiny.CFG)
  artifact = artifacts.load(workdir / 'init', 'init', tuned.fingerprint)
  assert set(artifact.parts) == {'lora'}


def test_settings_of_an_adapter_that_were_edited_are_refused(root, tmp_path):
  source = tmp_path / 'lora'
  checkpoints.write_adapter(source)
  checkpoints.write_projector(source / 'non_lora_trainables.bin', 'model.')
  base = str(root / 'ours')
  conversion.convert(source, tmp_path / 'sft', Request(base=base))
  path = tmp_path / 'sft' / 'artifact' / 'artifact.json'
  info = json.loads(path.read_text())
  info['lora']['alpha'] *= 2
  path.write_text(json.dumps(info))
  with pytest.raises(ConfigError, match='section lora was edited'):
    bases.tuned(bases.load(base, tiny.CFG), tmp_path / 'sft', tiny.CFG)
  del info['lora_fingerprint']  # of before it was recorded
  path.write_text(json.dumps(info))
  bases.tuned(bases.load(base, tiny.CFG), tmp_path / 'sft', tiny.CFG)


@pytest.mark.parametrize('place', ['init', 'init/artefact'])
def test_it_is_opened_with_its_base_and_its_sft_stage(root, workdir, place):
  assert readers.kind_of(workdir / place) == 'stage'
  checkpoint = readers.load_checkpoint(workdir / place)
  assert checkpoint.kind == 'stage' and checkpoint.base_ref is not None
  assert checkpoint.base_ref.base == str((root / 'ours').resolve())
  assert checkpoint.base_ref.sft == str((workdir / 'sft').resolve())


@pytest.mark.parametrize('field', ['sft', 'inputs.sft'])
def test_the_sft_stage_of_a_run_is_found_by_its_settings(workdir, field):
  """Paths of inputs had no section of their own before."""
  elsewhere = workdir / 'elsewhere'
  os.rename(workdir / 'sft', elsewhere)
  identity = workdir / 'init' / 'checkpoints' / 'identity.json'
  identity.parent.mkdir()
  identity.write_text(json.dumps({field: str(elsewhere), 'data.frames': 7}))
  checkpoint = readers.load_checkpoint(workdir / 'init')
  assert checkpoint.base_ref is not None
  assert checkpoint.base_ref.sft == str(elsewhere.resolve())
  assert checkpoint.frames == 7


def test_it_is_converted_and_replaced(root, workdir, tmp_path):
  conversion.convert(workdir / 'init', tmp_path / 'out', Request(to='llava'))
  assert readers.kind_of(tmp_path / 'out') == 'network'
  request = Request(base=str(root / 'ours'), overwrite=True)
  conversion.convert(tmp_path / 'lora', workdir / 'init', request)
  assert not (workdir / 'init' / 'artefact').exists()


def test_an_artifact_outside_the_folder_of_a_stage_is_refused(workdir):
  os.rename(workdir / 'init' / 'artefact', workdir / 'copy')
  os.rename(workdir / 'copy' / 'artefact.json', workdir / 'copy' / 'artifact.json')
  with pytest.raises(ConvertError, match='a folder named artifact'):
    readers.load_checkpoint(workdir / 'copy')
