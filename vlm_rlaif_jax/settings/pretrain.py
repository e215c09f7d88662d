"""Settings of the pretraining of the small bases."""

import dataclasses

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.sections import (
  AdamWConfig,
)
from vlm_rlaif_jax.settings.stage import Run, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
  """See; say all that differs; answer short questions and judge; all questions."""

  tower_steps: int = 1200  # steps of the first phase, in which the tower learns
  tower_batch: int = 128  # stills a step; half of them with captions
  # strips of stills, seen once; half as many stills, a quarter as many parts
  lists_strips: int = 16384
  lists_steps: int = 2000  # steps of the second phase: all that differs
  lists_batch: int = 24  # strips per step; half as many texts, a quarter of the others
  questions_steps: int = 4000  # steps of the third phase: short questions
  questions_batch: int = 14  # strips per step, and texts; a quarter of the others
  questions_rate: float = 3e-3  # peak of the learning rate, instead of optim's
  questions_whole: float = 0.2  # share of the steps, the last ones, with whole prompts
  forms_steps: int = 800  # steps of the last phase: all forms of questions
  forms_batch: int = 14  # texts per step; half as many strips, a quarter of the others
  forms_rate: float = 1.5e-3  # peak of the learning rate, instead of optim's
  noise: float = 0.03  # standard deviation added to normalized pixels
  contrastive: float = 0.3  # weight of CLIP's loss beside the naming of attributes
  motion: float = 0.3  # weight of naming what objects do beside how far they move
  judged: float = 3.0  # weight of a "Yes" or "No" among the tokens of answers

  def __post_init__(self):
    within(self, '>= 1', 'tower_steps', 'lists_steps', 'questions_steps', 'forms_steps')
    within(self, '>= 1', 'lists_strips', 'lists_batch', 'questions_batch')
    within(self, '>= 1', 'forms_batch')
    within(self, '>= 2', 'tower_batch')  # half of it has captions
    within(self, '> 0', 'questions_rate', 'forms_rate', 'judged')
    within(self, '[0, 1]', 'questions_whole')
    within(self, '>= 0', 'noise', 'contrastive', 'motion')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRun(Run):
  """A small image-text base, from stills and texts of the world.

  `base` is the one that the network is grown from; `RANDOM`: from nothing, in all of
  the phases.
  """

  optim: AdamWConfig = AdamWConfig()  # its rates; Muon for matrices
  pretrain: PretrainConfig = PretrainConfig()


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  return (
    f'{summary["parameters"]:,} parameters, {sum(summary["steps"].values())} steps, '
    f'{summary["pieces"]} pieces of vocabulary'
  )


STAGE = StageSpec(
  settings=PretrainRun,
  run='vlm_rlaif_jax.stages.pretrain:run',
  summary_line=summary_line,
  one_process=True,  # a network for one laptop
)
