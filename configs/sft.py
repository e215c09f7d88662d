"""Supervised fine-tuning: LoRA and the projector, short answers, then long ones.

python -m launch.train --config configs/sft.py                  # tiny, CPU, video world
python -m launch.train --config configs/sft.py:7b               # also :13b
python -m launch.train --config configs/sft.py --config.sft.order=short_long
python -m launch.train --config configs/sft.py:7b,preset=masked

`parity`, of the real sizes, averages over micro-batches as LLaVA-1.5 does, `masked`
over the tokens of a step.
"""

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import DataConfig, OptimConfig
from vlm_rlaif_jax.settings.sft import SftConfig, SftRun


def get_config(arg=''):
  arg = layouts.parse(arg, constants.SIZES, preset=models.LOSS_PRESETS)
  mean = models.loss_mean(arg.size, arg.preset)
  if arg.size in constants.WORLD_SIZES:
    return to_config_dict(
      SftRun(
        **models.world_run(arg.size),
        lora=LoraConfig(rank=32, alpha=32.0),
        optim=OptimConfig(
          learning_rate=2e-3, batch_size=16, clip_norm=1.0, loss_mean=mean
        ),
        # 59.9 % of questions, where short answers first give 56.1 %
        sft=SftConfig(order='mixed'),
      )
    )
  # LLaVA-1.5's LoRA recipe where the paper is silent: rates, batch, warm-up, length.
  run = SftRun(
    size=arg.size,
    model=models.named(arg.size),
    base=f'checkpoints/llava-{arg.size}',
    data=DataConfig(root='data', buckets=(256, 512, 1024, 2048)),
    optim=OptimConfig(learning_rate=2e-4, batch_size=128, accumulate=4, loss_mean=mean),
    projector_lr=2e-5,
  )
  return to_config_dict(layouts.apply(run, arg.layout))
