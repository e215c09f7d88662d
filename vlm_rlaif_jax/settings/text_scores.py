"""Settings of the benchmarks whose answers are compared with texts by CLIP."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within

SPLITS = (1, 2, 3)  # of UCF101 and of HMDB51


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextScoresConfig:
  """Retrieval and action recognition: what is asked, and how texts are compared."""

  # folder of a CLIP checkpoint whose text tower compares texts; '': that of the base
  text_encoder: str = ''
  text_batch: int = 256  # texts encoded at a time, over all devices
  # instruction of retrieval: a file of `data/prompts`, or the path of one's own
  retrieval_prompt: str = 'describe'
  # instruction of action recognition: a file of `data/prompts`, or one's own
  action_prompt: str = 'action'
  # texts that stand for a class: its name; one sentence with it; the mean of several
  action_templates: Literal['name', 'single', 'ensemble'] = 'single'
  splits: tuple[int, ...] = (1,)  # test splits of UCF101 and HMDB51, which are averaged

  def __post_init__(self):
    within(self, '>= 1', 'text_batch')
    chosen = set(self.splits)
    if not chosen or chosen - set(SPLITS) or len(chosen) < len(self.splits):
      raise ValueError(f'splits: choose some of 1, 2, 3, each once; got {self.splits}')
