"""Settings of the reward model."""

import dataclasses
import math
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.sections import OptimConfig, optimizer_batches
from vlm_rlaif_jax.settings.stage import Requirement, Run, SftInput, StageSpec

CutAnswers = Literal['open', 'drop', 'close']


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardPrompt:
  """The turn that is appended to an answer before it is scored."""

  prompt: str = 'reward'  # text after an answer: a name in data/prompts, or a path
  # what {factual_prompt} or {narrative} in it becomes (B02); captions: the narrative of
  # the video, of the pairs in stage reward, written before the first iteration in PPO
  placeholder: Literal['empty', 'literal', 'captions'] = 'empty'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
  """Pairwise (Bradley-Terry) loss with a centering term."""

  centering: float = 1e-3  # weight of the absolute mean of the scores
  eval_pairs: int = 500  # held-out pairs that measure accuracy
  eval_every: int = 400  # steps between measurements; 0: after the last step only
  # drop pairs over the last bucket (B39); False: they are bad samples
  filter_too_long: bool = False
  # answers cut at the length limit: without an end of sequence, as PPO scores them;
  # left out; or closed by one that nobody wrote, as the reference does (B41)
  cut_answers: CutAnswers = 'open'
  # head at the start: random, or the log-odds of Yes against No after the reward
  # prompt, which then has to end in a question like the judge's
  head_start: Literal['random', 'judge'] = 'random'
  # train on as many pairs that prefer the longer answer as the shorter one
  balance_lengths: bool = False

  # pairs to train on, drawn of all of them so that fewer are part of more; 0: all
  train_pairs: int = 0

  # pairs that are added, as a share of the others, whose worse answer is the better one
  # of another video to the same question: only a look tells them apart; `labels` and
  # the settings of lengths hold for them, too
  other_answers: float = 0.0
  # least share of pairs whose answers are equally long; others are left out at random
  equal_lengths: float = 0.0

  # Controls: what the reward model is trained on in place of pairs and videos.

  # preferences of the training pairs: as labeled; by the truth; the wrong ones; or the
  # shorter answer
  labels: Literal['judge', 'truth', 'inverted', 'shorter'] = 'judge'
  blind: bool = False  # train with zeros in place of the video

  def __post_init__(self):
    within(self, '>= 0', 'centering', 'eval_every', 'train_pairs')
    within(self, '>= 1', 'eval_pairs')
    within(self, '>= 0', 'other_answers')
    within(self, '[0, 1]', 'equal_lengths')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardInputs(SftInput):
  """Artifacts of earlier stages that the reward model is trained from."""

  pairs: str = ''  # file of pairs; '': pairs.json of `<workdir>/<size>/label`


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(Run):
  """The reward model: an adapter and a scalar head on the tuned model."""

  optim: OptimConfig = OptimConfig(
    learning_rate=2e-5, schedule='constant', batch_size=16, clip_norm=0.3
  )
  lora: LoraConfig = LoraConfig()
  reward: RewardConfig = RewardConfig()
  scoring: RewardPrompt = RewardPrompt()
  inputs: RewardInputs = RewardInputs()


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  line = f'{summary["pairs"]} pairs, {summary["steps"]} steps'
  if not summary['held_out']:
    return f'{line}, nothing held out'
  low, high = summary.get('accuracy_interval', (math.nan, math.nan))
  line += (
    f', accuracy on {summary["held_out"]} held-out pairs {summary["accuracy"]:.1%} '
    f'[{low:.1%}, {high:.1%}] '
    f'(without the video {summary["accuracy_without_video"]:.1%}'
  )
  if 'accuracy_other_video' in summary:  # not in runs of 0.1.0
    line += (
      f', with another one {summary["accuracy_other_video"]:.1%}, the shorter answer '
      f'{summary["accuracy_shorter"]:.1%}'
    )
  if 'accuracy_without_narrative' in summary:
    line += f', without the narrative {summary["accuracy_without_narrative"]:.1%}'
  return line + ')'


STAGE = StageSpec(
  settings=RewardRun,
  run='vlm_rlaif_jax.stages.reward:run',
  summary_line=summary_line,
  requires=lambda settings: [
    Requirement('sft', settings.size, 'sft'),
    Requirement('label', settings.size, 'pairs'),
  ],
  parts=('head',),
  phases='vlm_rlaif_jax.plan.training:reward_phases',
  resident='vlm_rlaif_jax.plan.training:reward_resident',
  batches=optimizer_batches,
)
