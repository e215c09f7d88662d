"""Checkpoints side by side on held-out clips, and by public benchmarks.

python -m launch.train --config configs/eval.py                 # tiny
python -m launch.train --config configs/eval.py:7b
python -m launch.train --config configs/eval.py:7b,preset=paper
--config.eval.models='("sft","rlaif")'
--config.eval.benchmarks='("msvd_qa","generic")'                # docs/evaluation.md
--config.eval.split=dev                                         # to choose settings

`paper` asks and judges as the reference does; `corrected` as its paper means.
"""

import dataclasses

from configs import layouts, models
from vlm_rlaif_jax.settings import constants
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig, as_released
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.settings.text_scores import TextScoresConfig

PRESETS = {
  'paper': {
    'template': 'llava_v0',  # B31: chosen by the name of the folder
    'temperature': 0.2,
    'answer_tokens': 512,
    'keep_special_tokens': True,
    'keep_placeholder': True,
    'consistency': 'first_twice',
  },
  'corrected': {},
}


def get_config(arg=''):
  arg = layouts.parse(
    arg, constants.SIZES, preset=('corrected', tuple(sorted(PRESETS)))
  )
  preset = PRESETS[arg.preset]
  judge = JudgeConfig()
  if arg.preset == 'paper':
    judge = as_released(judge)
  if arg.size in constants.WORLD_SIZES:
    return to_config_dict(
      EvalRun(
        **models.world_run(arg.size),
        eval=dataclasses.replace(
          EvalConfig(**preset),
          answer_tokens=48,
          describe_tokens=96,
          choice_prompt='tiny_choice',
          open_ended_tokens=96,
          batch=64,
          dev_share=0.25,
        ),
        judge=dataclasses.replace(judge, kind='world'),
        text_scores=TextScoresConfig(
          retrieval_prompt='tiny_describe',
          action_prompt='tiny_describe',
          action_templates='ensemble',
        ),
      )
    )
  run = EvalRun(
    size=arg.size,
    model=models.named(arg.size),
    base=f'checkpoints/llava-{arg.size}',
    data=DataConfig(root='data', buckets=(128, 256, 512)),
    eval=EvalConfig(models=('sft', 'init', 'rlaif'), **preset),
    judge=judge,
  )
  return to_config_dict(layouts.apply(run, arg.layout))
