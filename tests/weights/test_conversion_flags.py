"""Options of a conversion: none is ignored, and what is recorded is logged."""

import pytest

from tests.weights import checkpoints
from vlm_rlaif_jax.rl import gate
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import artifacts, conversion, readers
from vlm_rlaif_jax.weights.conversion import Request


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """ours, llava, an adapter, a reward model and an imported stage."""
  folder = tmp_path_factory.mktemp('flags')
  checkpoints.write_base(folder / 'ours')
  checkpoints.write_foreign(folder / 'llava', folder / 'ours', 'llava')
  checkpoints.write_adapter(folder / 'adapter')
  checkpoints.write_adapter(folder / 'reward' / 'adapter_model' / 'lora_default')
  checkpoints.write_head(folder / 'reward' / 'reward_head')
  conversion.convert(folder / 'adapter', folder / 'stage', Request(base=on(folder)))
  return folder


def on(root) -> str:
  return str(root / 'ours')


@pytest.mark.parametrize(
  ('source', 'given', 'idle'),
  [
    ('llava', {'base': '/nowhere'}, '--base:'),
    ('llava', {'sft': 'a', 'critic': 'b', 'critic_sft': 'c'}, '--critic, --critic_sft'),
    ('llava', {'base_name': 'x', 'merge': True}, '--merge, --base_name:'),
    ('llava', {'to': 'hf', 'partial': True}, '--partial:'),
    ('llava', {'to': 'hf', 'bits': 16}, '--bits:'),
    ('llava', {'reward_prompt': 'reward'}, '--reward_prompt:'),
    ('ours', {'to': 'hf', 'vision': '/nowhere'}, '--vision:'),
    ('stage', {'vision': '/nowhere', 'projector': '/no'}, '--vision, --projector:'),
    ('stage', {'merge': True}, '--merge:'),
    ('stage', {'to': 'hf', 'base_name': 'x'}, '--base_name:'),
    ('stage', {'critic': '/nowhere'}, '--critic:'),
    ('stage', {'critic_base_name': 'x'}, '--critic_base_name:'),
    ('adapter', {'base': 1, 'vision': '/no', 'dtype': 'float16'}, '--dtype, --vision:'),
    ('adapter', {'base': 1, 'projector': '/nowhere', 'base_name': 'x'}, '--projector'),
    ('adapter', {'base': 1, 'critic': '/nowhere'}, '--critic:'),
    ('adapter', {'base': 1, 'critic_sft': '/nowhere'}, '--critic_sft:'),
    ('adapter', {'base': 1, 'placeholder': 'empty'}, 'no reward head'),
    ('adapter', {'base': 1, 'to': 'hf', 'sft': '/nowhere'}, '--sft:'),
    ('adapter', {'base': 1, 'to': 'hf', 'vision': '/nowhere'}, 'is a base of ours'),
  ],
)
def test_a_flag_that_would_be_ignored_is_refused(root, tmp_path, source, given, idle):
  if 'base' in given and source == 'adapter':
    given = given | {'base': on(root)}
  with pytest.raises(UserError) as caught:
    conversion.convert(root / source, tmp_path / 'out', Request(**given))
  assert idle in str(caught.value) and '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_sft_of_an_sft_stage_is_refused(root, tmp_path):
  checkpoints.write_adapter(tmp_path / 'lora')
  checkpoints.write_projector(tmp_path / 'lora' / 'non_lora_trainables.bin', 'model.')
  conversion.convert(tmp_path / 'lora', tmp_path / 'sft', Request(base=on(root)))
  with pytest.raises(UserError, match='is itself an SFT stage'):
    conversion.convert(
      tmp_path / 'sft', tmp_path / 'o', Request(sft=str(root / 'stage'))
    )


def test_the_size_of_an_adapter_is_logged(root, tmp_path):
  lines = []
  request = Request(base=on(root))
  conversion.convert(root / 'adapter', tmp_path / 'out', request, log=lines.append)
  assert 'for a decoder of 2 layers and width 16 (custom)' in lines[0]


# ---------------------------------------------------------------- the reward prompt


def test_ppo_accepts_the_prompt_that_was_recorded(root, tmp_path):
  file = tmp_path / 'prompt.txt'
  file.write_text('Rate it.\n{factual_prompt}Score:')
  lines = []
  request = Request(base=on(root), reward_prompt=str(file), placeholder='literal')
  conversion.convert(root / 'reward', tmp_path / 'out', request, log=lines.append)
  assert any(f"prompt {str(file)!r}, placeholder 'literal'" in line for line in lines)
  reward = artifacts.load(tmp_path / 'out', 'reward')
  gate.check_scoring(reward, RewardPrompt(prompt=str(file), placeholder='literal'))
  with pytest.raises(artifacts.ArtifactError, match=r'config\.scoring'):
    gate.check_scoring(reward, RewardPrompt())
  loaded = readers.load_checkpoint(tmp_path / 'out')
  assert loaded.scoring == RewardPrompt(prompt=str(file), placeholder='literal')


def test_the_reference_prompt_is_the_default_and_logged(root, tmp_path):
  lines = []
  request = Request(base=on(root))
  conversion.convert(root / 'reward', tmp_path / 'out', request, log=lines.append)
  assert any("prompt 'reward', placeholder 'empty'" in line for line in lines)
  with pytest.raises(UserError, match="prompt 'nowhere': neither a file nor one of"):
    conversion.convert(
      root / 'reward', tmp_path / 'o', Request(base=on(root), reward_prompt='nowhere')
    )
  with pytest.raises(UserError, match='has no reward head'):
    readers.load_checkpoint(root / 'ours', scoring=RewardPrompt())
