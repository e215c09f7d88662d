"""AI preference labeling: two answers, a narrative of the clips, a judge.

python -m launch.train --config configs/label.py                # tiny
python -m launch.train --config configs/label.py:13b
python -m launch.train --config configs/label.py --config.label.context=none
python -m launch.train --config configs/label.py --config.label.judge=options
"""

import dataclasses

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.label import LabelConfig, LabelRun
from vlm_rlaif_jax.settings.sections import DataConfig


def get_config(arg=''):
  arg = layouts.parse(arg, constants.SIZES)
  if arg.size in constants.WORLD_SIZES:
    return to_config_dict(
      LabelRun(
        **models.world_run(arg.size),
        label=dataclasses.replace(models.tiny_judge(), compare=300),
      )
    )
  run = LabelRun(
    size=arg.size,
    model=models.named(arg.size),
    base=f'checkpoints/llava-{arg.size}',
    # The judge reads three captions and two answers: 1,792 tokens beside the question.
    data=DataConfig(root='data', buckets=(128, 256, 512, 1024, 2048, 3072)),
    label=LabelConfig(batch=128),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
