"""The tiny base: pretraining on stills and texts of the video world.

  python -m launch.train --config configs/pretrain.py
  python -m launch.train --config configs/pretrain.py:small     # 8 M parameters

It took 79 minutes on two cores. The base that it makes comes with the package, so that
nobody has to run it; to replace that, copy `runs/tiny/pretrain/artifact` over
`vlm_rlaif_jax/data/world/base`. `made.json` beside the weights records the settings.
"""

from configs import models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import parse_arg, to_config_dict
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.sections import AdamWConfig


def get_config(arg=''):
  arg = parse_arg(arg, size=('tiny', constants.WORLD_SIZES))
  return to_config_dict(
    PretrainRun(
      **{**models.world_run(arg.size, save_every=250), 'base': ''},
      optim=AdamWConfig(
        learning_rate=4e-3, beta2=0.98, weight_decay=0.01, warmup=100.0, clip_norm=1.0
      ),
    )
  )
