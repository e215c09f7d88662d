"""Every config file builds in every size, and bad settings give one helpful line."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from vlm_rlaif_jax.settings import build, stages
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict, to_config_dict
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.sft import SftRun

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {
  'pretrain': ('tiny',), 'sft': ('tiny', '7b', '13b'), 'label': ('tiny', '7b', '13b'),
  'reward': ('tiny', '7b', '13b'), 'init': ('tiny', '7b', '13b'),
  'ppo': ('tiny', '7b', '7b,preset=masked', 'tiny,preset=parity'),
  'eval': ('tiny', '7b', '13b'),
}  # fmt: skip


def config(stage: str, arg: str = ''):
  return importlib.import_module(f'configs.{stage}').get_config(arg)


@pytest.mark.parametrize(
  ('stage', 'arg'), [(s, a) for s, args in SIZES.items() for a in args]
)
def test_every_config_builds(stage, arg):
  made = from_config_dict(stages.every()[stage].settings, config(stage, arg))
  assert made.stage == stage
  assert made.size == arg.split(',')[0]


def test_there_are_no_other_config_files():
  files = {p.stem for p in (ROOT / 'configs').glob('*.py')} - {'models', 'layouts'}
  assert files == set(SIZES) == set(stages.every())


def test_tiny_is_the_default():
  for stage in SIZES:
    assert config(stage).size == 'tiny'


def test_round_trip():
  settings = SftRun()
  assert from_config_dict(SftRun, to_config_dict(settings)) == settings


def edited(stage, **changes):
  made = config(stage)
  with made.unlocked():
    for name, value in changes.items():
      *path, last = name.split('__')
      node = made
      for part in path:
        node = node[part]
      node[last] = value
  return made


@pytest.mark.parametrize(
  ('stage', 'changes', 'message'),
  [
    ('ppo', {'ppo__kl_coef': -1.0}, 'config.ppo.kl_coef: must be >= 0, got -1.0'),
    (
      'ppo',
      {'ppo__kl': 'k2'},
      "config.ppo.kl: choose one of k1_clamped, k1, k3; got 'k2'",
    ),
    (
      'ppo',
      {'ppo__step_batch': 48},
      'config.ppo.rollout_batch: 128 is not a multiple of step_batch 48',
    ),
    (
      'ppo',
      {'ppo__response_tokens': 5000},
      'config.ppo.response_tokens: 28 visual tokens',
    ),
    (
      'ppo',
      {'ppo__kl_coeff': 1.0},
      'config.ppo.kl_coeff: no such field; did you mean ',
    ),
    (
      'sft',
      {'sft__order': 'random'},
      'config.sft.order: choose one of short_long, mixed, long_short',
    ),
    ('sft', {'sft__stages': ('medium',)}, 'config.sft.stages: choose some of short'),
    ('sft', {'lora__targets': ('query',)}, 'config.lora.targets: choose some of q, k'),
    ('sft', {'optim__batch_size': 0}, 'config.optim.batch_size: must be >= 1, got 0'),
    (
      'ppo',
      {'optim__batch_size': 8},
      'config.optim.batch_size: no such field; known: ',
    ),
    (
      'sft',
      {'size': '7b'},
      "config.size: the network is that of 'tiny', got '7b'; a s",
    ),
    (
      'label',
      {'label__response_tokens': 1000},
      'config.label.response_tokens: 28 visual tokens, 80 of a prompt and 1000 of an',
    ),
    ('label', {'label__caption_tokens': 1000}, 'config.label.caption_tokens: 20 visu'),
    ('eval', {'eval__describe_tokens': 1000}, 'config.eval.describe_tokens: 28 visua'),
    ('sft', {'data__train': 'my.json'}, 'config.data.train: needs data.root'),
    ('sft', {'data__on_bad_sample': 'ignore'}, 'config.data.on_bad_sample: choose one'),
    ('label', {'label__temperature': 0.0}, 'config.label.temperature: must be > 0'),
    ('eval', {'eval__models': ('ppo',)}, 'config.eval.models: choose some of base'),
    ('sft', {'mesh__data': -1, 'mesh__fsdp': -1}, 'config.mesh.data: sizes are >= 1'),
  ],
)
def test_bad_values(stage, changes, message):
  with pytest.raises(ConfigError) as error:
    from_config_dict(stages.every()[stage].settings, edited(stage, **changes))
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)


NAN, INF = float('nan'), float('inf')
OUT_OF_RANGE = {
  'sft': {
    'seed': (-1, 2**32), 'projector_lr': (-1.0, NAN), 'sft.short_words': (-1,),
    'optim.learning_rate': (0.0, NAN, INF), 'optim.warmup': (-1.0, NAN),
    'optim.beta1': (1.0, NAN), 'optim.beta2': (-0.1,), 'optim.eps': (-1.0,),
    'optim.weight_decay': (-0.1, INF), 'optim.clip_norm': (-1.0, NAN),
    'optim.accumulate': (0,), 'optim.epochs': (0,), 'lora.rank': (0,),
    'lora.alpha': (NAN,), 'lora.dropout': (1.0,), 'data.max_samples': (-1,),
    'data.workers': (0,), 'data.frames': (0,), 'data.holdout': (NAN,),
    'data.buckets': ((0, 80),), 'log.every': (0,), 'checkpoint.keep': (0,),
    'world.seed': (-1,), 'world.test': (0,), 'world.motion_bias': (NAN,),
    'model.joint': (0,), 'model.vision.patch_size': (0, -4), 'model.vision.heads': (0,),
    'model.text.width': (0,), 'model.llama.kv_heads': (0,),
    'model.llama.head_dim': (0, 7), 'model.llama.rope_theta': (NAN,),
  },
  'label': {
    'label.top_p': (0.0, 1.5, NAN), 'label.response_tokens': (0,),
    'label.caption_tokens': (0,), 'label.clip_frames': (0,), 'label.batch': (0,),
    'label.min_margin': (NAN,), 'label.temperature': (NAN,),
  },
  'reward': {
    'reward.eval_pairs': (0,), 'reward.eval_every': (-1,), 'reward.centering': (NAN,),
  },
  'ppo': {
    'ppo.iterations': (-1,), 'ppo.eval_every': (0,), 'ppo.eval_prompts': (0,),
    'ppo.rollout_batch': (0,), 'ppo.step_batch': (0,), 'ppo.sample_batch': (-1,),
    'ppo.logit_chunk': (-1,), 'ppo.kl_coef': (NAN, INF), 'ppo.gamma': (NAN,),
    'ppo.stop_penalty': (NAN, -INF), 'ppo.length_bonus': (INF,),
    'ppo.reward_bias': (NAN,), 'ppo.clip_value': (0.0, NAN),
    'gate.judge_agreement': (-0.1, NAN), 'gate.order_agreement': (1.5,),
    'gate.reward_accuracy': (60.0,),
  },
  'eval': {
    'eval.batch': (0,), 'eval.temperature': (-1.0, NAN), 'eval.clips': (-1,),
    'eval.answer_tokens': (0,),
  },
  'pretrain': {
    'pretrain.tower_steps': (0,), 'pretrain.questions_batch': (0,),
    'pretrain.questions_whole': (1.5,), 'pretrain.noise': (NAN,),
  },
}  # fmt: skip


@pytest.mark.parametrize('stage', OUT_OF_RANGE)
def test_numbers_that_cannot_mean_anything_are_refused_by_name(stage):
  for name, values in OUT_OF_RANGE[stage].items():
    for value in values:
      changed = edited(stage, **{name.replace('.', '__'): value})
      with pytest.raises(ConfigError) as error:
        from_config_dict(stages.every()[stage].settings, changed)
      assert str(error.value).startswith(f'config.{name}: must be '), error.value
      assert str(error.value).endswith(f', got {value}')


@pytest.mark.parametrize(
  ('stage', 'changes'),
  [
    ('ppo', {'ppo__iterations': 0, 'ppo__sample_batch': 0, 'ppo__logit_chunk': 0}),
    ('ppo', {'ppo__clip_value': INF, 'ppo__logprob_gap': INF, 'ppo__kl_coef': 0.0}),
    ('ppo', {'gate__judge_agreement': 1.0, 'gate__order_agreement': 0.0}),
    ('sft', {'optim__warmup': 0.0, 'optim__beta1': 0.0, 'seed': 2**32 - 1}),
    ('reward', {'reward__eval_every': 0, 'reward__eval_pairs': 1}),
    ('label', {'label__response_tokens': 1024 - 28 - 80}),
  ],
)
def test_ends_of_ranges_are_in_them(stage, changes):
  from_config_dict(stages.every()[stage].settings, edited(stage, **changes))


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('9b', 'size=9b: choose one of tiny, 7b'),
    ('7b,bit=4', "'bit=4': choose some of bits, layout, preset, size"),
    ('7b,masked', "'masked': choose some of bits, layout, preset, size"),
    ('tiny,layout=a100x8', 'layout=a100x8: layouts are for the real sizes'),
  ],
)
def test_bad_arguments(arg, message):
  with pytest.raises(ConfigError, match=message):
    config('ppo', arg)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config', 'configs/ppo.py:9b'],
      'error: --config argument size=9b: choose one of tiny, 7b',
    ),
    (['--config', 'configs/nope.py'], 'configs/nope.py'),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.kl_coeff=1'],
      "no field 'kl_coeff' in config.ppo: did you mean config.ppo.kl_coef?",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.mesh.zzz=1'],
      "no field 'zzz' in config.mesh: data, fsdp, tensor",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.kl_coef=high'],
      "--config.ppo.kl_coef=high: must be a number, got 'high'",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.iterations=1.5'],
      "--config.ppo.iterations=1.5: must be a whole number, got '1.5'",
    ),
    (
      ['--config', 'configs/ppo.py', '--config.ppo.mask_pads=maybe'],
      "--config.ppo.mask_pads=maybe: must be True or False, got 'maybe'",
    ),
    (
      ['--config', 'configs/sft.py', '--config.model.vision.patch_size=0'],
      'config.model.vision.patch_size: must be >= 1, got 0',
    ),
    (['--config', 'configs/sft.py', '--config.size=7b'], '--config configs/sft.py:7b'),
    (['--config', 'configs/ppo.py', '--config.ppo.gamma=-1'], 'config.ppo.gamma: '),
    (['--config', 'configs/ppo.py:7b'], 'configs/sft.py:7b'),
    (
      ['--config', 'configs/ppo.py', '--config.inputs.sft=/nope'],
      'config.inputs.sft: /nope: no such folder',
    ),
    ([], '--config is missing'),
  ],
)
def test_the_command_line_says_one_line_without_loading_jax(flags, message, tmp_path):
  program = (
    'import sys, runpy\n'
    'class Trap:\n'
    '  def find_spec(self, name, path=None, target=None):\n'
    '    if name == "jax": raise SystemExit("jax was imported")\n'
    'sys.meta_path.insert(0, Trap())\n'
    'from launch import process\n'
    'process.prepare = lambda: None\n'
    'runpy.run_module("launch.train", run_name="__main__")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, *flags, f'--workdir={tmp_path}'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert message in done.stderr


def test_ppo_is_qlora_unless_16_bits_are_asked_for():
  """The reference's PPO is in 4 bits whatever its flags say (training.md 6.1)."""
  for arg, residency in (('tiny', 'nf4'), ('tiny,bits=16', 'native'), ('7b', 'nf4')):
    settings = from_config_dict(PpoRun, config('ppo', arg))
    held = {settings.quant.residency, settings.critic_quant.residency}
    assert held == {residency}, arg


def test_flatten_names_every_leaf():
  flat = build.flatten(SftRun())
  assert flat['optim.learning_rate'] == 1e-4 and flat['model.llama.layers'] == 32
