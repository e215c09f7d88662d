import pytest

from configs import study as config
from launch import cells
from vlm_rlaif_jax.settings import describe, stages
from vlm_rlaif_jax.settings.build import ConfigError


def finish(folder, *names):
  for stage in names:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / stage / 'summary.json').write_text('{}')


def test_every_flag_of_a_cell_is_a_setting_of_its_stage():
  for name, cell in config.get_config()['cells'].items():
    for stage in cells.STAGES:
      names = {s.name for s in describe.settings(stages.every()[stage].settings)}
      flags = {**cell.get('all', {}), **cell.get(stage, {})}
      assert flags.keys() <= names, (name, stage)
    assert cell.get('expect') in ('up', 'down', 'same', None)
    assert ('expect' in cell) != ('worse_than' in cell), name


def test_a_cell_runs_what_is_not_done_with_its_flags(tmp_path):
  commands = []
  finish(tmp_path / 'default-42' / 'tiny', 'sft', 'label')
  cells.run_cell(tmp_path, 'default', {'all': {'world.sft': 9}}, 42, commands.append)
  assert [command[4] for command in commands] == [
    'configs/init.py', 'configs/reward.py', 'configs/ppo.py'
  ]  # fmt: skip
  assert '--config.world.sft=9' in commands[0] and '--config.seed=42' in commands[0]
  assert commands[0][-1] == f'--workdir={tmp_path / "default-42"}'


def test_shared_stages_are_links_to_the_default_run(tmp_path):
  source, commands = tmp_path / 'default-42' / 'tiny', []
  cell = {'shared': ('sft', 'label', 'init'), 'reward': {'reward.labels': 'inverted'}}
  with pytest.raises(ConfigError, match='sft: not done, and inverted-42 shares it'):
    cells.run_cell(tmp_path, 'inverted', cell, 42, commands.append)
  finish(source, 'sft', 'label', 'init')
  (source / 'world-1').mkdir()
  (source / 'features').mkdir()
  for _ in range(2):  # a second run finds the links
    cells.run_cell(tmp_path, 'inverted', cell, 42, commands.append)
  assert [command[4] for command in commands[:2]] == [
    'configs/reward.py', 'configs/ppo.py'
  ]  # fmt: skip
  assert '--config.reward.labels=inverted' in commands[0]
  links = {p.name for p in (tmp_path / 'inverted-42/tiny').iterdir() if p.is_symlink()}
  assert links == {'sft', 'label', 'init', 'world-1', 'features'}


def test_the_default_cell_comes_first_and_others_must_exist():
  study_config = config.get_config()
  names, seeds = cells.choose(study_config, ['blind', 'default'], ['42'])
  assert names == ['default', 'blind'] and seeds == [42]
  assert cells.choose(study_config, [], [])[1] == [42, 43, 44]
  with pytest.raises(ConfigError, match='--cells: no nothing; choose of default'):
    cells.choose(study_config, ['nothing'], [])
  with pytest.raises(ConfigError, match='--seeds: must be numbers'):
    cells.choose(study_config, [], ['x'])
