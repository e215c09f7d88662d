"""Settings of AI preference labeling."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import percent, within
from vlm_rlaif_jax.settings.stage import Requirement, Run, SftInput, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
  """AI preference labeling with context (paper section 3)."""

  answers: int = 2  # answers that are sampled to a question
  # pairs that they make: each answer with each, or the best with the worst by the sum
  # of their margins over the others; of two answers there is one
  pairs: Literal['all', 'extremes'] = 'all'
  temperature: float = 1.0  # temperature of sampling the answers
  top_p: float = 1.0  # probability mass that the answers are sampled from
  response_tokens: int = 512  # longest answer
  # what the judge reads beside the video
  context: Literal['narrative', 'none'] = 'narrative'
  clip_frames: int = 20  # at most this many of the sampled frames in one clip
  caption_tokens: int = 256  # longest caption of a clip
  # compares two answers, or checks their claims one by one
  judge: Literal['options', 'claims'] = 'options'
  # judge=claims: an answer's score, the sum or the mean over its claims; by the sum,
  # whoever doubts most claims prefers the shorter answer
  claims_score: Literal['sum', 'mean'] = 'sum'
  both_orders: bool = True  # judge=options: ask again with the answers swapped
  # both_orders: pairs whose two orders disagree
  inconsistent: Literal['keep', 'drop', 'average'] = 'average'
  ties: Literal['keep', 'drop'] = 'drop'  # pairs with a margin of at most min_margin
  min_margin: float = 0.0  # log-odds up to which a pair is a tie
  compare: int = 0  # questions that are judged in the other context, too
  # text that asks for a caption: a name in data/prompts, or a path
  caption_prompt: str = 'caption'
  options_prompt: str = 'judge_options'  # text for judge=options: a name or a path
  claims_prompt: str = 'judge_claims'  # text for judge=claims: a name or a path
  batch: int = 32  # prompts generated or judged at a time, over all devices

  def __post_init__(self):
    within(self, '>= 2', 'answers')
    within(self, '>= 0', 'compare', 'min_margin')
    within(self, '> 0', 'temperature')  # two greedy answers are one
    within(self, '(0, 1]', 'top_p')
    within(self, '>= 1', 'response_tokens', 'clip_frames', 'caption_tokens', 'batch')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRun(Run):
  """AI preference labeling: the tuned model answers, narrates and judges."""

  label: LabelConfig = LabelConfig()
  inputs: SftInput = SftInput()

  def __post_init__(self):
    super().__post_init__()
    label, frames, shortest = self.label, self.data.frames, self.data.buckets[0]
    clip = min(frames, label.clip_frames)
    self._check_room('label.response_tokens', frames, shortest, label.response_tokens)
    self._check_room('label.caption_tokens', clip, shortest, label.caption_tokens)


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  parts = [f'{summary["pairs"]} pairs of {summary["questions"]} questions']
  if summary.get('agreement_kept') is not None:
    parts.append(f'labels agree with the truth on {summary["agreement_kept"]:.1%}')
  if compared := summary.get('compared'):
    parts.append(
      f'on {compared["n"]} of them {percent(compared["narrative"])} with the '
      f'narrative, {percent(compared["none"])} without'
    )
  if summary.get('order_agreement') is not None:
    parts.append(f'the two orders agree on {summary["order_agreement"]:.1%}')
  return '; '.join(parts)


STAGE = StageSpec(
  settings=LabelRun,
  run='vlm_rlaif_jax.stages.label:run',
  summary_line=summary_line,
  requires=lambda settings: [Requirement('sft', settings.size, 'sft')],
  data_files=lambda settings: ('preference', 'truth'),  # rows also say what is true
  result='summary.json',
  phases='vlm_rlaif_jax.plan.generation:label_phases',
  resident='vlm_rlaif_jax.plan.generation:label_resident',
  batches=lambda settings: [('config.label.batch', settings.label.batch)],
)
