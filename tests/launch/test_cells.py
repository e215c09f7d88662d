import os
import shutil
import sys

import pytest

from configs import study as config
from launch import cells
from vlm_rlaif_jax.reports import study_pairs, study_table
from vlm_rlaif_jax.settings import describe, stages
from vlm_rlaif_jax.settings.build import ConfigError


def finish(folder, *names):
  for stage in names:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / stage / 'summary.json').write_text('{}')


def stages_of(commands):
  return [command[4].removeprefix('configs/').split('.')[0] for command in commands]


def test_every_flag_of_a_cell_is_a_setting_of_its_stage():
  for name, cell in config.get_config()['cells'].items():
    for stage in cells.STAGES:
      names = {s.name for s in describe.settings(stages.every()[stage].settings)}
      flags = {**cell.get('all', {}), **cell.get(stage, {})}
      assert flags.keys() <= names, (name, stage)
    assert cell.get('expect') in ('up', 'down', 'same', None)
    kinds = {'expect', 'worse_than', 'better_than'}
    assert len(kinds & cell.keys()) == 1, name


def test_a_cell_runs_what_is_not_done_with_its_flags(tmp_path):
  commands = []
  finish(tmp_path / 'default-42' / 'tiny', 'sft', 'label')
  cells.run_cell(tmp_path, 'default', {'all': {'world.sft': 9}}, 42, commands.append)
  assert stages_of(commands) == ['init', 'reward', 'ppo', 'eval']
  assert '--config.world.sft=9' in commands[0] and '--config.seed=42' in commands[0]
  assert '--nofollow' in commands[2]
  assert commands[0][-1] == f'--workdir={tmp_path / "default-42"}'


def test_what_is_behind_a_stage_that_runs_is_asked_again(tmp_path):
  """As where SFT was removed to be trained anew, and an old evaluation is there."""
  commands, folder = [], tmp_path / 'default-42' / 'tiny'
  finish(folder, 'label', 'init', 'reward', 'ppo', 'eval')
  cells.run_cell(tmp_path, 'default', {}, 42, commands.append)
  assert stages_of(commands) == ['sft', 'label', 'init', 'reward', 'ppo', 'eval']
  finish(folder, 'sft')
  cells.run_cell(tmp_path, 'default', {}, 42, commands.clear)  # nothing is left to do
  commands.clear()  # stages of the default run are its own
  cell = {'critic': 'small', 'shared': ('sft', 'init')}
  cells.run_cell(tmp_path, 'larger', cell, 42, commands.append)
  names = [command[4].removeprefix('configs/') for command in commands]
  assert names == [
    *('label.py:tiny', 'pretrain.py:small', 'sft.py:small', 'reward.py:small'),
    *('ppo.py:tiny,critic=small', 'eval.py:tiny'),
  ]


def test_a_study_that_is_killed_goes_on_with_what_is_behind(tmp_path):
  """SFT was run again, and the old evaluation was taken for one of it."""

  def run(command):
    if stages_of([command]) == ['label'] and killed:
      raise SystemExit(1)
    commands.append(command)
    finish(folder, *stages_of([command]))

  killed, commands, folder = True, [], tmp_path / 'default-42' / 'tiny'
  finish(folder, *cells.STAGES[1:])
  with pytest.raises(SystemExit):
    cells.run_cell(tmp_path, 'default', {}, 42, run)
  assert study_pairs.summaries(folder.parent, {'eval': 'tiny'}) is None
  killed = False
  cells.run_cell(tmp_path, 'default', {}, 42, run)
  assert stages_of(commands) == ['sft', 'label', 'init', 'reward', 'ppo', 'eval']
  assert study_pairs.summaries(folder.parent, {'eval': 'tiny'}) == {'eval': {}}
  cells.run_cell(tmp_path, 'default', {}, 42, run)
  assert len(commands) == 6  # nothing is left to do


def test_a_cell_with_other_flags_is_run_with_them(tmp_path):
  commands, folder = [], tmp_path / 'equal-42' / 'tiny'
  finish(folder, *cells.STAGES)
  for times in (0.1, 0.1, 0.2):
    cell = {'reward': {'reward.equal_lengths': times}}
    cells.run_cell(tmp_path, 'equal', cell, 42, commands.append)
  assert stages_of(commands) == ['reward', 'ppo', 'eval']
  assert '--config.reward.equal_lengths=0.2' in commands[0]
  (tmp_path / 'equal-42').rename(tmp_path / 'study-equal-42')
  (tmp_path / 'study').mkdir()
  (tmp_path / 'study-equal-42').rename(tmp_path / 'study' / 'equal-42')
  cells.run_cell(tmp_path / 'study', 'equal', cell, 42, commands.append)
  assert len(commands) == 3  # a study that was moved is as done as it was


def test_a_cell_runs_what_stands_on_a_shared_stage_that_has_run_since(tmp_path):
  commands, source = [], tmp_path / 'default-42' / 'tiny'
  cell = {'shared': ('sft', 'label', 'init')}
  finish(source, 'sft', 'label', 'init')
  finish(tmp_path / 'blind-42' / 'tiny', 'reward', 'ppo', 'eval')
  cells.run_cell(tmp_path, 'blind', cell, 42, commands.append)
  assert not commands
  later = (source / 'label' / 'summary.json').stat().st_mtime + 60
  os.utime(source / 'label' / 'summary.json', (later, later))
  cells.run_cell(tmp_path, 'blind', cell, 42, commands.append)
  assert stages_of(commands) == ['reward', 'ppo', 'eval']


def test_a_base_of_all_cells_is_older_than_what_they_share(tmp_path):
  commands, cell = [], {'critic': 'small', 'shared': ('sft', 'init')}
  finish(tmp_path / 'small', 'pretrain')
  os.utime(tmp_path / 'small' / 'pretrain' / 'summary.json', (1, 1))
  finish(tmp_path / 'default-42' / 'tiny', 'sft', 'init')
  finish(tmp_path / 'larger-42' / 'tiny', 'label', 'ppo', 'eval')
  finish(tmp_path / 'larger-42' / 'small', 'sft', 'reward')
  cells.run_cell(tmp_path, 'larger', cell, 42, commands.append)
  assert not commands


def test_shared_stages_of_a_study_that_was_moved_are_its_own(tmp_path):
  source, cell = tmp_path / 'old' / 'default-42' / 'tiny', {'shared': ('sft',)}
  finish(source, 'sft')
  cells.run_cell(tmp_path / 'old', 'blind', cell, 42, [].append)
  link = tmp_path / 'old' / 'blind-42' / 'tiny' / 'sft'
  assert not link.readlink().is_absolute()
  link.unlink()
  link.symlink_to(source / 'sft')  # of an earlier version
  shutil.copytree(tmp_path / 'old', tmp_path / 'new', symlinks=True)
  (tmp_path / 'new/default-42/tiny/sft/summary.json').write_text('{"new": 1}')
  cells.run_cell(tmp_path / 'new', 'blind', cell, 42, [].append)
  read = (tmp_path / 'new/blind-42/tiny/sft/summary.json').read_text()
  assert read == '{"new": 1}'


def test_the_table_has_every_seed_that_has_run(tmp_path):
  for name in ('default-7', 'default-42', 'blind-9', 'blind-007', 'blind-x', 'other-3'):
    (tmp_path / name).mkdir()
  assert cells.seeds_there(tmp_path, ('default', 'blind'), (42, 43)) == [42, 43, 7, 9]


def test_shared_stages_are_links_to_the_default_run(tmp_path):
  source, commands = tmp_path / 'default-42' / 'tiny', []
  cell = {'shared': ('sft', 'label', 'init'), 'reward': {'reward.labels': 'inverted'}}
  with pytest.raises(ConfigError, match='sft: not done, and inverted-42 shares it'):
    cells.run_cell(tmp_path, 'inverted', cell, 42, commands.append)
  finish(source, 'sft', 'label', 'init')
  (source / 'world-1').mkdir()
  (source.parent / 'features').mkdir()
  for _ in range(2):  # a second run finds the links
    cells.run_cell(tmp_path, 'inverted', cell, 42, commands.append)
  assert stages_of(commands[:3]) == ['reward', 'ppo', 'eval']
  assert '--config.reward.labels=inverted' in commands[0]
  links = {p.name for p in (tmp_path / 'inverted-42/tiny').iterdir() if p.is_symlink()}
  assert links == {'sft', 'label', 'init', 'world-1'}
  assert (tmp_path / 'inverted-42' / 'features').is_symlink()


def test_a_stage_that_refuses_ends_its_cell_and_is_noted(tmp_path):
  def run(command):
    if stages_of([command]) == ['ppo'] and refuses:
      raise cells.RefusedError
    commands.append(command)

  refuses, commands = True, []
  assert cells.run_cell(tmp_path, 'honest', {}, 42, run) == 'ppo'
  assert stages_of(commands) == ['sft', 'label', 'init', 'reward']
  honest = {'honest': {'expect': 'same', 'claim': 'nothing to gain'}}
  [result] = study_table.read(tmp_path, honest, (42, 43)).values()
  assert result['refused'] == {42: 'ppo'}
  assert result['verdict'] == 'ppo refused to run'
  finish(tmp_path / 'honest-42' / 'tiny', *cells.STAGES)  # of a former run
  [result] = study_table.read(tmp_path, honest, (42, 43)).values()
  assert not result['seeds'] and result['verdict'] == 'ppo refused to run'
  shutil.rmtree(tmp_path / 'honest-42' / 'tiny')
  refuses = False
  assert not cells.run_cell(tmp_path, 'honest', {}, 42, run)
  [result] = study_table.read(tmp_path, honest, (42, 43)).values()
  assert result['verdict'] == 'not run'  # nothing of it is there


def test_only_a_refusal_lets_the_study_go_on():
  for status, error in ((2, cells.RefusedError), (1, SystemExit)):
    with pytest.raises(error):
      cells.execute([sys.executable, '-c', f'raise SystemExit({status})'])


def test_a_critic_of_another_size_has_a_base_an_sft_and_pairs_of_the_policy(tmp_path):
  commands = []
  cells.run_cell(tmp_path, 'larger', {'critic': 'small'}, 42, commands.append)
  names = [command[4].removeprefix('configs/') for command in commands]
  assert names == [
    *('sft.py:tiny', 'label.py:tiny', 'init.py:tiny'),
    *('pretrain.py:small', 'sft.py:small', 'reward.py:small'),
    *('ppo.py:tiny,critic=small', 'eval.py:tiny'),
  ]
  flags = {stage: command for stage, command in zip(names, commands, strict=True)}
  base, own = tmp_path / 'small/pretrain/artifact', tmp_path / 'larger-42/tiny'
  assert flags['pretrain.py:small'][-1] == f'--workdir={tmp_path}'
  assert f'--config.base={base}' in flags['sft.py:small']
  assert f'--config.inputs.pairs={own / "label/pairs.json"}' in flags['reward.py:small']
  assert f'--config.critic_base={base}' in flags['ppo.py:tiny,critic=small']


def test_the_default_cell_comes_first_and_others_must_exist():
  study_config = config.get_config()
  names, seeds = cells.choose(study_config, ['blind', 'default'], ['42'])
  assert names == ['default', 'blind'] and seeds == [42]
  assert cells.choose(study_config, [], [])[1] == [42, 43, 44]
  with pytest.raises(ConfigError, match='--cells: no nothing; choose of default'):
    cells.choose(study_config, ['nothing'], [])
  with pytest.raises(ConfigError, match='--seeds: must be numbers'):
    cells.choose(study_config, [], ['x'])
