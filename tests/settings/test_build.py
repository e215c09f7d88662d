"""Settings and ConfigDicts are one another's copies, and bad settings give one line."""

import pytest

from tests.configs.edit import edited
from vlm_rlaif_jax.settings import build, stages
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict, to_config_dict
from vlm_rlaif_jax.settings.sft import SftRun


def test_round_trip():
  settings = SftRun()
  assert from_config_dict(SftRun, to_config_dict(settings)) == settings


def test_flatten_names_every_leaf():
  flat = build.flatten(SftRun())
  assert flat['optim.learning_rate'] == 1e-4 and flat['model.llama.layers'] == 32


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
      'config.label.response_tokens: 28 visual tokens, 48 of a prompt and 1000 of an',
    ),
    ('label', {'label__caption_tokens': 1000}, 'config.label.caption_tokens: 20 visu'),
    ('eval', {'eval__describe_tokens': 1000}, 'config.eval.describe_tokens: 28 visua'),
    ('sft', {'data__train': 'my.json'}, 'config.data.train: needs data.root'),
    ('sft', {'data__on_bad_sample': 'ignore'}, 'config.data.on_bad_sample: choose one'),
    ('label', {'label__temperature': 0.0}, 'config.label.temperature: must be > 0'),
    ('eval', {'eval__models': ('ppo',)}, 'config.eval.models: choose some of base'),
    (
      'ppo',
      {'ppo__reward': 'judge', 'ppo__select': 'last', 'ppo__blind_reward': True},
      "config.ppo.blind_reward: hides the video from the reward model, and reward='jud",
    ),
    (
      'ppo',
      {'ppo__blind_reward': True},
      'config.gate.grounding: asks for a lead of 0.03 by the video, which ppo.blind_re',
    ),
    (
      'ppo',
      {'ppo__kl_target': 5.0, 'ppo__kl_horizon': 20.0},
      'config.ppo.kl_horizon: must be > 25.6, a fifth of rollout_batch 128, or one rol',
    ),
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


@pytest.mark.parametrize('given', [('sft,rlaif',), ('sft', 'rlaif')])
def test_lists_of_names_may_have_commas(given):
  """A flag's `sft,rlaif` comes as the first of these."""
  changed = edited('eval', eval__models=given)
  settings = from_config_dict(stages.every()['eval'].settings, changed)
  assert settings.eval.models == ('sft', 'rlaif')


@pytest.mark.parametrize('text', [',', 'well, no', 'Yes, '])
def test_texts_with_commas_stay_whole(text):
  changed = edited('ppo', ppo__stop_texts=(text,))
  settings = from_config_dict(stages.every()['ppo'].settings, changed)
  assert settings.ppo.stop_texts == (text,)
