import sys

import pytest

from configs import study as config
from launch import cells
from vlm_rlaif_jax.reports import study_table
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
