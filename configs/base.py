"""The tiny base: pretraining on stills and texts of the video world.

  python -m launch.train --config configs/base.py

Its result comes with the package; nobody has to run this.
"""

from configs import models
from vlm_rlaif_jax.config.build import parse_arg, to_config_dict
from vlm_rlaif_jax.config.sections import Optim
from vlm_rlaif_jax.config.stages import BaseRun


def get_config(arg=''):
  parse_arg(arg, size=('tiny', ('tiny',)))
  return to_config_dict(
    BaseRun(**models.tiny_run(), optim=Optim(learning_rate=1.5e-3, clip_norm=1.0))
  )
