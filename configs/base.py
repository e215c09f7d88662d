"""The tiny base: pretraining on stills and texts of the video world.

  python -m launch.train --config configs/base.py

Hours on two cores. Weights come with the package, so nobody has to run
this: copy `runs/tiny/base/artefact` over `vlm_rlaif_jax/data/world/base` to replace
them.
Those were made by the same phases, in several sittings while their mixture was worked
out (the first at a higher rate; the words of the strips changed last). Run from start
to end in its present form, this gives a weaker base: see the README.
"""

from configs import models
from vlm_rlaif_jax.config.build import parse_arg, to_config_dict
from vlm_rlaif_jax.config.sections import Optim
from vlm_rlaif_jax.config.stages import BaseRun


def get_config(arg=''):
  parse_arg(arg, size=('tiny', ('tiny',)))
  return to_config_dict(
    BaseRun(
      **models.tiny_run(save_every=250),
      optim=Optim(
        learning_rate=1.5e-3, beta2=0.98, weight_decay=0.01, warmup=100.0, clip_norm=1.0
      ),
    )
  )
