"""Which stages a command runs, what they are handed, and what is refused at once."""

import json

import pytest

from configs import layouts
from launch import jobs
from vlm_rlaif_jax.settings import stages as specs
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict

# The README's recipe for the real sizes.
RECIPE = (
  'sft:7b',
  'sft:13b',
  'label:13b',
  'reward:13b',
  'init:7b',
  'ppo:7b',
  'eval:7b',
)


def run(name: str, **flags):
  """The settings of `configs/<stage>.py:<size>` with flags, `a__b` for `a.b`."""
  stage, _, arg = name.partition(':')
  config = jobs.importlib.import_module(f'configs.{stage}').get_config(arg)
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in flags.items()})
  return jobs.completed(from_config_dict(specs.every()[stage].settings, config))


def leave(workdir, *names, **summary):
  """What finished stages leave, as far as planning looks."""
  for name in names:
    stage, _, size = name.partition(':')
    folder = workdir / (size or 'tiny') / stage
    (folder / 'artifact').mkdir(parents=True, exist_ok=True)
    (folder / 'artifact' / 'artifact.json').write_text('{}')
    (folder / 'pairs.json').write_text('[]')
    (folder / 'summary.json').write_text(json.dumps({'stage': stage, **summary}))
  return folder


def names(settings, workdir):
  return [job.stage for job in jobs.resolve_jobs(settings, workdir)[0]]


def refusal(settings, workdir) -> str:
  with pytest.raises(ConfigError) as error:
    jobs.resolve_jobs(settings, workdir)
  assert '\n' not in str(error.value)
  return str(error.value)


# ---------------------------------------------------------------- what is needed


@pytest.mark.parametrize(
  ('stage', 'there', 'expected'),
  [
    ('ppo', [], 'sft label reward init ppo eval'),
    ('eval', [], 'sft label reward init ppo eval'),
    ('eval', ['sft', 'reward'], 'init ppo eval'),
    ('eval', ['sft', 'ppo'], 'init eval'),
    ('eval', ['sft', 'init', 'ppo'], 'eval'),
    ('reward', [], 'sft label reward'),
    ('reward', ['sft'], 'label reward'),
    ('init', [], 'sft init'),
    ('ppo', ['sft', 'reward'], 'init ppo eval'),
    ('pretrain', [], 'pretrain'),
  ],
)
def test_the_tiny_size_makes_what_is_missing_first(stage, there, expected, tmp_path):
  if there:
    leave(tmp_path, *there)
  assert names(run(stage), tmp_path) == expected.split()


@pytest.mark.parametrize(
  ('models', 'expected'),
  [
    (('base',), 'eval'),
    (('base', 'sft'), 'sft eval'),
    (('init',), 'sft init eval'),
    (('sft', 'init', 'rlaif'), 'sft label reward init ppo eval'),
  ],
)
def test_an_evaluation_needs_what_its_models_read(models, expected, tmp_path):
  assert names(run('eval', eval__models=models), tmp_path) == expected.split()


def test_the_evaluation_after_ppo_can_be_left_out(tmp_path):
  runs, _ = jobs.resolve_jobs(run('ppo'), tmp_path, follow=False)
  assert [job.stage for job in runs] == ['sft', 'label', 'reward', 'init', 'ppo']


def test_a_larger_critic_of_the_world_has_stages_of_its_own_size(tmp_path):
  runs, _ = jobs.resolve_jobs(run('ppo:tiny,critic=small'), tmp_path)
  assert [f'{job.stage}:{job.size}' for job in runs] == [
    *('sft:tiny', 'sft:small', 'label:small', 'reward:small'),
    *('init:tiny', 'ppo:tiny', 'eval:tiny'),
  ]
  assert {job.base for job in runs if job.size == 'small'} == {
    'runs/small/pretrain/artifact'
  }


def test_the_recipe_of_the_real_sizes_needs_nothing_else(tmp_path):
  for name in RECIPE:
    assert names(run(f'{name},layout=a100x8'), tmp_path) == [name.partition(':')[0]]
    leave(tmp_path, name, lineage=run(name).lineage)
    assert not jobs.resolve_jobs(run(name), tmp_path)[1]


@pytest.mark.parametrize('name', RECIPE[2:])
def test_a_missing_artifact_of_a_real_size_has_a_command(name, tmp_path):
  """Followed again and again, the commands make everything."""
  asked = []
  while len(asked) < len(RECIPE):
    try:
      jobs.resolve_jobs(run(name), tmp_path)
      break
    except ConfigError as error:
      command = str(error).partition('--config configs/')[2].split()[0]
    asked.append(command.replace('.py', ''))
    leave(tmp_path, asked[-1])
  assert asked == [made for made in RECIPE if made in asked]
  assert {
    'label:13b': {'sft:13b'},
    'reward:13b': {'sft:13b', 'label:13b'},
    'init:7b': {'sft:7b'},
    'ppo:7b': set(RECIPE[:5]),
    'eval:7b': set(RECIPE[:6]),
  }[name] == set(asked)


def test_places_that_are_named_are_enough(tmp_path):
  places = {}
  for stage, size in (('sft', '7b'), ('init', '7b'), ('ppo', '7b')):
    places[f'inputs__{stage}'] = str(leave(tmp_path / 'other', f'{stage}:{size}'))
  assert names(run('eval:7b', **places), tmp_path) == ['eval']


def test_the_critics_own_sft_is_needed_unless_it_is_named(tmp_path):
  leave(tmp_path, 'sft:7b', 'label:13b', 'reward:13b', 'init:7b')
  said = refusal(run('ppo:7b'), tmp_path)
  assert said.startswith(f'{tmp_path}/13b/sft: no sft artifact')
  assert '--config configs/sft.py:13b' in said
  assert names(run('ppo:7b', inputs__critic_sft='merged'), tmp_path) == ['ppo']


def test_a_file_of_pairs_stands_for_the_label_stage(tmp_path):
  file = tmp_path / 'pairs.json'
  file.write_text('[]')
  leave(tmp_path, 'sft:13b')
  assert names(run('reward:13b', inputs__pairs=str(file)), tmp_path) == ['reward']
  leave(tmp_path, 'sft:7b', 'reward:13b', 'init:7b')
  assert names(run('ppo:7b'), tmp_path) == ['ppo']
  said = refusal(run('reward:13b', inputs__pairs='/nope.json'), tmp_path)
  assert said == 'config.inputs.pairs: /nope.json: no such file'


# ---------------------------------------------------------------- what is handed on


def planned(settings, workdir):
  return {job.stage: job for job in jobs.resolve_jobs(settings, workdir)[0]}


def test_stages_made_on_the_way_have_what_the_user_set(tmp_path):
  sft = leave(tmp_path / 'other', 'sft')
  made = planned(
    run(
      'ppo', seed=7, world__sft=11, model__projector='relu', inputs__sft=str(sft),
      checkpoint__on_change='restart', checkpoint__every=3,
    ),
    tmp_path,
  )  # fmt: skip
  assert list(made) == ['label', 'reward', 'init', 'ppo', 'eval']
  for job in made.values():
    assert job.seed == 7 and job.world.sft == 11, job.stage
    assert job.model.projector == 'relu' and getattr(job.inputs, 'sft', None) == str(
      sft
    ), job.stage
    assert job.checkpoint.on_change == 'restart', job.stage
  assert made['ppo'].critic.projector == 'relu'
  assert made['reward'].checkpoint.every == run('reward').checkpoint.every


def test_a_run_without_flags_is_made_of_the_configured_stages(tmp_path):
  for stage, job in planned(run('ppo'), tmp_path).items():
    assert job == run(stage)


def test_an_sft_made_on_the_way_keeps_its_curriculum(tmp_path):
  assert planned(run('label'), tmp_path)['sft'].sft == run('sft').sft


def test_named_labels_are_the_pairs_of_a_reward_model(tmp_path):
  label = leave(tmp_path / 'other', 'label')
  made = planned(run('ppo', inputs__label=str(label)), tmp_path)
  assert list(made) == ['sft', 'reward', 'init', 'ppo', 'eval']
  assert made['reward'].inputs.pairs == str(label / 'pairs.json')


def test_a_critic_of_its_own_has_its_own_label_and_reward(tmp_path):
  flags = {
    'critic_base': 'b',
    'inputs__critic_sft': 'merged',
    'critic__projector': 'relu',
  }
  made = planned(run('ppo', **flags), tmp_path)
  for stage in ('label', 'reward'):
    job = made[stage]
    assert (job.base, job.inputs.sft, job.model.projector) == ('b', 'merged', 'relu')
  assert (made['init'].base, made['init'].model.projector) == ('', 'gelu')


def test_another_base_for_the_critic_needs_an_sft_of_its_own():
  with pytest.raises(
    ConfigError, match=r'^config.inputs.critic_sft: stage sft of size tiny'
  ):
    run('ppo', critic_base='b')
  assert (
    run('ppo', critic_base='b', inputs__critic_sft='merged').inputs.critic_sft
    == 'merged'
  )
  assert run('ppo:7b', critic_base='b').inputs.critic_sft == ''  # its size has its own


def test_the_critics_network_is_of_its_size():
  with pytest.raises(ConfigError, match=r"^config.critic_size: .*'13b', got '7b'"):
    run('ppo:7b', critic_size='7b')


def test_the_critic_is_the_network_of_the_one_base():
  critic = run('ppo', model__projector='relu', critic__dtype='bfloat16').critic
  assert (critic.projector, critic.dtype) == ('relu', 'bfloat16')
  with pytest.raises(ConfigError, match=r'^config.critic: .*layers: 4 -> 2'):
    run('ppo', critic__llama__layers=2)


@pytest.mark.parametrize('stage', ['sft', 'init', 'reward', 'label'])
def test_a_named_place_without_its_artifact_is_refused(stage, tmp_path):
  said = refusal(run('ppo', **{f'inputs__{stage}': '/nope'}), tmp_path)
  assert said == f'config.inputs.{stage}: /nope: no such folder'
  said = refusal(run('ppo', **{f'inputs__{stage}': str(tmp_path)}), tmp_path)
  assert said.startswith(f'config.inputs.{stage}: {tmp_path}: has no ')
  assert said.endswith(f'runs/tiny/{stage}')


def test_a_workdir_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  said = refusal(run('label'), tmp_path / 'file')
  assert said.endswith('summary.json: cannot be read (Not a directory)')


# ---------------------------------------------------------------- what is reused


def test_an_artifact_of_another_seed_is_refused_until_it_is_named(tmp_path):
  folder = leave(tmp_path, 'sft', lineage=run('sft').lineage)
  assert names(run('label'), tmp_path) == ['label']
  said = refusal(run('label', seed=43, world__sft=9), tmp_path)
  assert said.startswith(f'{folder}: made with other settings: seed: 42 -> 43; world.s')
  for remedy in (
    'another --workdir',
    'on_change=restart',
    f'--config.inputs.sft={folder} ',
  ):
    assert remedy in said
  named = run('label', seed=43, world__sft=9, inputs__sft=str(folder))
  assert names(named, tmp_path) == ['label']


def test_a_restart_makes_what_differs_again(tmp_path):
  leave(tmp_path, 'sft', 'label', 'reward', 'init', lineage=run('sft').lineage)
  leave(tmp_path, 'reward', lineage=run('sft', seed=43).lineage)
  settings = run('ppo', seed=43, checkpoint__on_change='restart')
  assert names(settings, tmp_path) == ['sft', 'label', 'init', 'ppo', 'eval']


@pytest.mark.parametrize(
  'flags',
  [
    {'data__root': 'mine'},
    {'data__frames': 8},
    {'base': 'another'},
    {'model__projector': 'relu'},
  ],
)
def test_data_base_and_network_must_agree(flags, tmp_path):
  leave(tmp_path, 'sft', lineage=run('sft').lineage)
  assert next(iter(flags)).replace('__', '.') in refusal(run('init', **flags), tmp_path)


def test_what_a_stage_may_have_of_its_own_is_no_difference(tmp_path):
  leave(tmp_path, 'sft', lineage=run('sft', data__root='mine').lineage)
  flags = {'data__root': './mine', 'world__sft': 3, 'data__workers': 1}
  own = run('init', **flags, model__dtype='bfloat16', data__on_bad_sample='skip')
  assert names(own, tmp_path) == ['init']


def test_changes_that_are_to_be_ignored_are_said(tmp_path):
  leave(tmp_path, 'sft', lineage=run('sft').lineage)
  settings = run('init', seed=43, checkpoint__on_change='ignore')
  assert names(settings, tmp_path) == ['init']
  assert (
    'seed: 42 -> 43; it is used as it is' in jobs.resolve_jobs(settings, tmp_path)[1][0]
  )


def test_summaries_without_a_record_are_accepted(tmp_path):
  leave(tmp_path, 'sft')
  assert jobs.resolve_jobs(run('label', seed=43), tmp_path)[1] == []
  (tmp_path / 'tiny' / 'sft' / 'summary.json').write_text('[1')
  assert 'summary.json: damaged' in refusal(run('label'), tmp_path)


def test_real_sizes_are_told_and_go_on(tmp_path):
  for name in RECIPE[:5]:
    leave(tmp_path, name, lineage=run(name).lineage)
  settings, notes = jobs.resolve_jobs(run('ppo:7b', seed=1), tmp_path)
  assert [job.stage for job in settings] == ['ppo']
  assert len(notes) == 5
  assert notes[0] == (
    f'{tmp_path}/7b/sft: made with other settings: seed: 42 -> 1; it is used as it is'
  )


@pytest.mark.parametrize('layout', layouts.NAMES)
def test_a_layout_is_no_difference(layout):
  arg = f'7b,layout={layout}' if layout else '7b'
  assert run(f'sft:{arg}').lineage == run('sft:7b').lineage
