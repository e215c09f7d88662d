"""Bases of the video world: pretraining on its stills and texts.

  python -m launch.train --config configs/pretrain.py
  python -m launch.train --config configs/pretrain.py:small     # 8 M parameters

The tiny one took 79 minutes on two cores. It comes with the package, so that nobody has
to run it; to replace that, copy `runs/tiny/pretrain/artifact` over
`vlm_rlaif_jax/data/world/base`. The small one is grown from it. `made.json` beside the
weights records the settings.
"""

import dataclasses

from configs import models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import parse_arg, to_config_dict
from vlm_rlaif_jax.settings.pretrain import PretrainConfig, PretrainRun
from vlm_rlaif_jax.settings.sections import AdamWConfig
from vlm_rlaif_jax.settings.stage import RANDOM


def get_config(arg=''):
  arg = parse_arg(arg, size=('tiny', constants.WORLD_SIZES))
  config = PretrainConfig()
  if arg.size != 'tiny':  # it has learned before what its base has
    config = dataclasses.replace(
      config,
      questions_steps=500,
      questions_rate=1.5e-3,
      forms_steps=250,
      forms_rate=1e-3,
    )
  run = models.world_run(arg.size, save_every=250)
  return to_config_dict(
    PretrainRun(
      **{**run, 'base': RANDOM if arg.size == 'tiny' else ''},
      optim=AdamWConfig(
        learning_rate=4e-3, beta2=0.98, weight_decay=0.01, warmup=100.0, clip_norm=1.0
      ),
      pretrain=config,
    )
  )
