"""Settings of evaluation."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Zero-shot QA and descriptions, for several checkpoints side by side."""

  models: tuple[str, ...] = ('base', 'sft', 'rlaif')
  clips: int = 0  # test clips; 0: all
  temperature: float = 0.0  # 0: greedy
  answer_tokens: int = 64
  describe_tokens: int = 512
  batch: int = 32
  template: Literal['vicuna_v1', 'llava_v0'] = 'vicuna_v1'  # B31

  def __post_init__(self):
    within(self, '>= 0', 'clips', 'temperature')
    within(self, '>= 1', 'answer_tokens', 'describe_tokens', 'batch')
    unknown = set(self.models) - {'base', 'sft', 'init', 'rlaif'}
    if unknown or not self.models:
      raise ValueError(
        f'models: choose some of base, sft, init, rlaif; got {self.models}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(Run):
  eval: EvalConfig = EvalConfig()
  sft: str = ''
  init: str = ''
  ppo: str = ''

  def __post_init__(self):
    super().__post_init__()
    for name in ('answer_tokens', 'describe_tokens'):
      shortest, answer = self.data.buckets[0], getattr(self.eval, name)
      self._check_room(f'eval.{name}', self.data.frames, shortest, answer)
