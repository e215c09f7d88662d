"""How a command says what its user can put right."""

import errno
import os

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.sections import CheckpointConfig
from vlm_rlaif_jax.train.loop import Interrupted


def test_a_setting_without_dashes_is_refused():
  process.reject_arguments(['launch.train'])
  with pytest.raises(ConfigError, match=r'^sft\.order=mixed: not a flag; .*--config'):
    process.reject_arguments(['launch.train', 'sft.order=mixed'])


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
  process.writable('', '--json')
  file = tmp_path / 'figures.json'
  file.write_text('{}')
  process.writable(str(file), '--json')
  assert file.read_text() == '{}'
  process.writable(str(tmp_path / 'other.json'), '--json')
  assert not (tmp_path / 'other.json').exists()  # work that fails leaves none
  with pytest.raises(ConfigError, match=r'--json=.*cannot be written') as error:
    process.writable(str(file / 'below'), '--json')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('saved', ['sft: saved at step 3 of 9', ''])
@pytest.mark.parametrize('on_change', ['stop', 'restart'])
def test_only_what_was_saved_is_gone_on_with(saved, on_change, capsys):
  @process.one_line_errors
  def main(argv):
    settings = CheckpointConfig(on_change=on_change)
    raise Interrupted(saved, settings) if saved else KeyboardInterrupt

  with pytest.raises(SystemExit) as stopped:
    main([])
  assert stopped.value.code == 130
  said = capsys.readouterr().err
  assert said.startswith('stopped') and saved in said
  assert ('resumes from there' in said) == bool(saved)
  anew = saved and on_change == 'restart'  # with it, the same command starts anew
  assert ('command without on_change=restart resumes' in said) == bool(anew)


def test_a_full_disk_is_one_line_that_is_no_refusal(capsys):
  @process.one_line_errors
  def main(argv):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/tiny/sft/checkpoints')

  with pytest.raises(SystemExit) as stopped:
    main([])
  assert stopped.value.code == 1
  line = 'error: runs/tiny/sft/checkpoints: No space left on device; make room'
  assert capsys.readouterr().err.startswith(line)


def test_a_platform_that_is_not_here_is_one_line(capsys, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'gpu')

  @process.one_line_errors
  def main(argv):
    raise RuntimeError("Unable to initialize backend 'rocm': not known\nand so on")

  with pytest.raises(SystemExit) as stopped:
    main([])
  assert stopped.value.code == 2
  expected = (
    "error: JAX_PLATFORMS=gpu: Unable to initialize backend 'rocm': not known\n"
  )
  assert capsys.readouterr().err == expected


@pytest.mark.parametrize('name', ['JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'])
def test_a_number_of_the_environment_that_is_none_is_one_line(name, monkeypatch):
  monkeypatch.setenv(name, 'four')
  with flagsaver.flagsaver():
    flags.FLAGS(['train'])
    with pytest.raises(ConfigError, match=f'{name}=four in the environment: must be'):
      process.join()
