"""Policy initialisation: plain SFT of a fresh adapter on the tuned model.

python -m launch.train --config configs/init.py                 # tiny
python -m launch.train --config configs/init.py:7b
"""

from configs import layouts, models
from vlm_rlaif_jax.config.build import to_config_dict
from vlm_rlaif_jax.config.models import LoraConfig
from vlm_rlaif_jax.config.sections import Data, Optim
from vlm_rlaif_jax.config.stages import InitRun


def get_config(arg=''):
  arg = layouts.parse(arg, models.SIZES, bits=('16', models.BITS))
  if arg.size == 'tiny':
    return to_config_dict(
      InitRun(
        **models.tiny_run(),
        quant=models.held(arg.bits),
        lora=LoraConfig(rank=16, alpha=16.0),
        optim=Optim(learning_rate=5e-4, batch_size=16, clip_norm=1.0),
      )
    )
  # Reference: RLAIF/scripts/initialize_policy_model.sh; its gradient is not clipped.
  run = InitRun(
    size=arg.size,
    model=models.named(arg.size),
    quant=models.held(arg.bits),
    base=f'checkpoints/llava-{arg.size}',
    data=Data(root='data', buckets=(128, 256, 512, 1024)),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
