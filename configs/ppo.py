"""PPO against the learned reward. In the tiny size, the whole method from nothing.

  python -m launch.train --config configs/ppo.py               # tiny, CPU, video world
  python -m launch.train --config configs/ppo.py:7b            # 7B policy, 13B reward
  python -m launch.train --config configs/ppo.py:7b,preset=masked
  python -m launch.train --config configs/ppo.py:tiny,bits=16  # bases not quantized
  python -m launch.train --config configs/ppo.py:tiny,critic=small
  python -m launch.train --config configs/ppo.py --config.ppo.kl_coef=0.1

`parity` computes as the reference does, quirks included; `masked` as the papers mean.
"""

import dataclasses

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import ConfigError, to_config_dict
from vlm_rlaif_jax.settings.ppo import GateConfig, PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import AdamWConfig, CheckpointConfig, DataConfig

PRESETS = {
  'parity': {  # register rows of the reference's implementation
    'mask_pads': False,  # B10
    'terminal': 'last_index',  # B40
    'kl': 'k1_clamped',  # B09
    'reward_scale': 10.0,  # B04
    'value_head_init': 'zero',  # B05
    'stop_at': 'question_last',  # B06
    'unknown': 'remove',  # B36
  },
  'masked': {
    'mask_pads': True,
    'terminal': 'last_token',
    'kl': 'k1',
    'reward_scale': 1.0,
    'value_head_init': 'zero',
    'stop_at': 'eos',
    'unknown': 'suppress',
    # The objective of the papers is the reward model's score less the KL penalty
    # (Ouyang et al. 2022), and their value loss a plain squared error (Schulman et al.
    # 2017, eq. 9). The reference adds -8 and -10 to scores that differ by about 1. An
    # answer without an end, which the reward model was not trained on, loses 1 (Huang
    # et al. 2024).
    'clip_value': float('inf'),
    'stop_penalty': -1.0,
    'length_bonus': 0.0,
  },
}


def get_config(arg=''):
  arg = layouts.parse(
    arg,
    (*constants.WORLD_SIZES, '7b'),
    critic=('', constants.WORLD_SIZES),
    preset=('', ('parity', 'masked')),
    bits=('', models.BITS),
  )
  # The reference's PPO is QLoRA whatever its flags say.
  quant = models.quantization(arg.bits or '4')
  of_world = arg.size in constants.WORLD_SIZES
  preset = PRESETS[arg.preset or ('masked' if of_world else 'parity')]
  if of_world:
    critic = arg.critic or arg.size
    return to_config_dict(
      PpoRun(
        **models.world_run(arg.size, save_every=5),
        critic=models.named(critic),
        critic_size=critic,
        critic_base='' if critic == arg.size else models.world_run(critic)['base'],
        quant=quant,
        critic_quant=quant,
        optim=AdamWConfig(learning_rate=1.5e-3, warmup=2.0, clip_norm=1.0),
        ppo=dataclasses.replace(
          PpoConfig(**preset),
          iterations=15,
          rollout_batch=128,
          step_batch=64,
          micro_batch=64,
          query_tokens=52,
          response_tokens=32,  # those of its kinds of questions have 25 at most
          kl_coef=0.2,
          gae_lambda=0.95,
          value_coef=0.1,
          clip_value=1.0,
          stop_penalty=-2.0,
          length_bonus=1.0,  # silence is no free lunch
          eval_prompts=128,
          eval_every=5,
          select='judge',
        ),
        scoring=RewardPrompt(prompt='tiny_reward_judge'),
        judge=models.tiny_judge(),
        gate=GateConfig(judge_agreement=0.6, reward_accuracy=0.55, grounding=0.03),
      )
    )
  if arg.critic:
    raise ConfigError(
      f'--config argument critic={arg.critic}: of the built-in world, and the policy '
      f'is {arg.size}; the critic of real sizes is --config.critic_size'
    )
  # Reference: RLAIF/scripts/train_rl_model.sh.
  run = PpoRun(
    size='7b',
    model=models.named('7b'),
    critic=models.named('13b'),
    critic_size='13b',
    quant=quant,
    critic_quant=quant,
    base='checkpoints/llava-7b',
    critic_base='checkpoints/llava-13b',
    data=DataConfig(root='data', buckets=(128, 256, 512, 1024)),
    checkpoint=CheckpointConfig(every=10),
    ppo=dataclasses.replace(PpoConfig(), **preset),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
