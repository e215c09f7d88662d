"""Policy initialization: plain SFT of a fresh adapter on the tuned model.

python -m launch.train --config configs/init.py                 # tiny
python -m launch.train --config configs/init.py:7b
python -m launch.train --config configs/init.py:7b,preset=masked

`parity`, of the real sizes, averages over micro-batches as the reference does, `masked`
over the tokens of a step.
"""

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import DataConfig, OptimConfig


def get_config(arg=''):
  arg = layouts.parse(
    arg, constants.SIZES, bits=('16', models.BITS), preset=models.LOSS_PRESETS
  )
  mean = models.loss_mean(arg.size, arg.preset)
  if arg.size in constants.WORLD_SIZES:
    return to_config_dict(
      InitRun(
        **models.world_run(arg.size),
        quant=models.quantization(arg.bits),
        lora=LoraConfig(rank=16, alpha=16.0),
        optim=OptimConfig(
          learning_rate=5e-4, batch_size=16, clip_norm=1.0, loss_mean=mean
        ),
      )
    )
  # Reference: RLAIF/scripts/initialize_policy_model.sh; its gradient is not clipped.
  run = InitRun(
    size=arg.size,
    model=models.named(arg.size),
    quant=models.quantization(arg.bits),
    base=f'checkpoints/llava-{arg.size}',
    optim=OptimConfig(batch_size=128, accumulate=2, loss_mean=mean),
    data=DataConfig(root='data', buckets=(128, 256, 512, 1024)),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
