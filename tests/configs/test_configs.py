"""Every config file builds in every size, and a bad argument gives one helpful line."""

import math
import pathlib

import pytest

from tests.configs.edit import config
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict
from vlm_rlaif_jax.settings.ppo import PpoRun

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {
  'pretrain': ('tiny', 'small'),
  'sft': ('tiny', 'small', '7b', '13b', '7b,preset=masked'),
  'label': ('tiny', '7b', '13b'), 'reward': ('tiny', '7b', '13b'),
  'init': ('tiny', '7b', '13b', '7b,preset=masked'),
  'ppo': ('tiny', '7b', '7b,preset=masked', 'tiny,preset=parity', 'tiny,critic=small'),
  'eval': ('tiny', '7b', '13b'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('stage', 'arg'), [(s, a) for s, args in SIZES.items() for a in args]
)
def test_every_config_builds(stage, arg):
  settings = from_config_dict(stages.every()[stage].settings, config(stage, arg))
  assert settings.stage == stage
  assert settings.size == arg.split(',')[0]


def test_there_are_no_other_config_files():
  others = {'models', 'layouts', 'study'}
  files = {p.stem for p in (ROOT / 'configs').glob('*.py')} - others
  assert files == set(SIZES) == set(stages.every())


def test_tiny_is_the_default():
  for stage in SIZES:
    assert config(stage).size == 'tiny'


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('9b', 'size=9b: choose one of tiny, small, 7b'),
    ('7b,bit=4', "'bit=4': choose some of bits, critic, layout, preset, size"),
    ('7b,masked', "'masked': choose some of bits, critic, layout, preset, size"),
    ('7b,critic=small', 'critic=small: of the built-in world, and the policy is 7b'),
    ('tiny,layout=a100x8', 'layout=a100x8: layouts are for the real sizes'),
  ],
)
def test_bad_arguments(arg, message):
  with pytest.raises(ConfigError, match=message):
    config('ppo', arg)


@pytest.mark.parametrize(
  ('stage', 'arg', 'keeps'),
  [
    ('ppo', '7b,layout=a100x8', 'names'),
    ('sft', '7b,layout=h100x8', 'names'),
    ('sft', '13b,layout=a100x8', 'full'),  # 80.7 of 78.3 GB
    ('reward', '13b,layout=a100x8', 'full'),
    ('ppo', '7b,layout=a100-40x8', 'names'),
    ('ppo', '7b,layout=v5e-16', 'names'),
    ('sft', '7b,layout=v5e-16', 'full'),
    ('sft', '7b,layout=a100-40x8', 'full'),
    ('ppo', '7b', 'full'),
  ],
)
def test_activations_are_saved_where_a_card_has_room(stage, arg, keeps):
  settings = config(stage, arg)
  assert settings.model.remat == keeps
  if stage == 'ppo':  # of 13B, in the rows that PPO has in memory
    assert settings.critic.remat == keeps


def test_a_larger_critic_stands_on_its_own_base():
  run = from_config_dict(PpoRun, config('ppo', 'tiny,critic=small'))
  assert (run.base, run.critic_base) == ('', 'runs/small/pretrain/artifact')
  assert not run.one_base and run.critic.llama.width == 2 * run.model.llama.width
  same = from_config_dict(PpoRun, config('ppo', 'small'))
  assert same.one_base and same.base == run.critic_base


def test_a_critic_of_its_own_has_room_for_the_responses():
  larger = config('ppo', 'tiny,critic=small')
  larger.critic.llama.max_positions = 64
  with pytest.raises(
    ConfigError, match=r'ppo\.response_tokens: .* exceed critic\.llama\.max_positions'
  ):
    from_config_dict(PpoRun, larger)
  longer = config('ppo', 'tiny')  # the critic is to follow the policy
  longer.model.llama.max_positions = 4096
  longer.ppo.response_tokens = 2000
  from_config_dict(PpoRun, longer)


def test_ppo_is_qlora_unless_16_bits_are_asked_for():
  """The reference's PPO is in 4 bits whatever its flags say."""
  for arg, residency in (('tiny', 'nf4'), ('tiny,bits=16', 'native'), ('7b', 'nf4')):
    settings = from_config_dict(PpoRun, config('ppo', arg))
    residencies = {settings.quant.residency, settings.critic_quant.residency}
    assert residencies == {residency}, arg


def test_the_masked_preset_has_the_reward_and_the_losses_of_the_papers():
  parity, masked = (
    from_config_dict(PpoRun, config('ppo', f'7b,preset={name}')).ppo
    for name in ('parity', 'masked')
  )
  quirks = ('clip_value', 'stop_penalty', 'length_bonus', 'reward_scale')
  assert [getattr(parity, name) for name in quirks] == [0.2, -8.0, -10.0, 10.0]
  assert [getattr(masked, name) for name in quirks] == [math.inf, -1.0, 0.0, 1.0]
  for stage in ('sft', 'init'):
    kind = stages.every()[stage].settings
    means = {
      arg: from_config_dict(kind, config(stage, arg)).optim.loss_mean
      for arg in ('tiny', '7b', '7b,preset=masked', 'tiny,preset=parity')
    }
    assert list(means.values()) == ['step', 'micro_batch', 'step', 'micro_batch']
