"""Settings of AI preference labeling."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
  """AI preference labeling with context (paper section 3)."""

  temperature: float = 1.0  # of the two answers
  top_p: float = 1.0
  response_tokens: int = 512
  context: Literal['narrative', 'none'] = 'narrative'
  clip_frames: int = 20  # at most this many of the sampled frames in one clip
  caption_tokens: int = 256
  judge: Literal['options', 'claims'] = 'options'
  both_orders: bool = True  # options: ask with the answers swapped, too
  inconsistent: Literal['keep', 'drop', 'average'] = 'average'  # orders that disagree
  ties: Literal['keep', 'drop'] = 'drop'  # margins of exactly zero
  min_margin: float = 0.0  # log-odds up to which a pair is a tie
  compare: int = 0  # questions that are judged in the other context too, to compare
  caption_prompt: str = 'caption'
  options_prompt: str = 'judge_options'
  claims_prompt: str = 'judge_claims'
  batch: int = 32  # prompts generated or judged at a time, over all devices

  def __post_init__(self):
    within(self, '>= 0', 'compare', 'min_margin')
    within(self, '> 0', 'temperature')  # two greedy answers are one
    within(self, '(0, 1]', 'top_p')
    within(self, '>= 1', 'response_tokens', 'clip_frames', 'caption_tokens', 'batch')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRun(Run):
  label: LabelConfig = LabelConfig()
  sft: str = ''

  def __post_init__(self):
    super().__post_init__()
    label, frames, shortest = self.label, self.data.frames, self.data.buckets[0]
    clip = min(frames, label.clip_frames)
    self._check_room('label.response_tokens', frames, shortest, label.response_tokens)
    self._check_room('label.caption_tokens', clip, shortest, label.caption_tokens)
