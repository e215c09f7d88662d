"""The reward model, from the pairs of the label stage.

python -m launch.train --config configs/reward.py               # tiny
python -m launch.train --config configs/reward.py:13b           # as in the paper
"""

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.reward import RewardConfig, RewardPrompt, RewardRun
from vlm_rlaif_jax.settings.sections import DataConfig, OptimConfig


def get_config(arg=''):
  arg = layouts.parse(arg, constants.SIZES, bits=('16', models.BITS))
  if arg.size in constants.WORLD_SIZES:
    return to_config_dict(
      RewardRun(
        **models.world_run(arg.size),
        quant=models.quantization(arg.bits),
        lora=LoraConfig(rank=16, alpha=16.0),
        optim=OptimConfig(learning_rate=5e-4, batch_size=16, clip_norm=1.0, epochs=2),
        reward=RewardConfig(eval_every=100, head_start='judge'),
        scoring=RewardPrompt(prompt='tiny_reward_judge'),
      )
    )
  # Reference: RLAIF/scripts/train_reward_model.sh and the defaults of its program.
  run = RewardRun(
    size=arg.size,
    model=models.named(arg.size),
    quant=models.quantization(arg.bits),
    base=f'checkpoints/llava-{arg.size}',
    data=DataConfig(root='data', buckets=(256, 512, 768, 1024, 2048)),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
