"""Checkpoints side by side: zero-shot QA and descriptions on held-out clips.

python -m launch.train --config configs/eval.py                 # tiny
python -m launch.train --config configs/eval.py:7b
--config.eval.models='("sft","rlaif")'
--config.eval.split=dev                                         # to choose settings
"""

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig


def get_config(arg=''):
  arg = layouts.parse(arg, constants.SIZES)
  if arg.size == 'tiny':
    return to_config_dict(
      EvalRun(
        **models.tiny_run(),
        eval=EvalConfig(answer_tokens=48, describe_tokens=96, batch=64, dev_share=0.25),
      )
    )
  run = EvalRun(
    size=arg.size,
    model=models.named(arg.size),
    base=f'checkpoints/llava-{arg.size}',
    data=DataConfig(root='data', buckets=(128, 256, 512)),
    eval=EvalConfig(models=('sft', 'init', 'rlaif')),
  )
  return to_config_dict(layouts.apply(run, arg.layout))
