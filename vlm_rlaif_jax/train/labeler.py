"""Who labeled the pairs of the stage label, and how, compared with what is there now.

Pairs are a model's judgments of its own answers. When SFT is run again, those of the
former model stay until the stage label is run again, too. A reward model that reads
narratives was trained on those of the pairs, and PPO writes its own.
"""

import pathlib
from typing import Any

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.weights import artifacts
from vlm_rlaif_jax.weights.bases import Base


def say_other_labeler(label: pathlib.Path, sft: pathlib.Path, tuned: Base) -> None:
  """Prints it where the pairs were labeled by another model than the tuned one.

  Nothing is printed where it is not known who labeled them.

  Args:
    label: folder of the stage; pairs from elsewhere are not compared.
    sft: folder of the stage that tuned the model.
  """
  summary = artifacts.read_summary(label) or {}
  labeled_by = summary.get('fingerprint')
  if labeled_by in (None, tuned.fingerprint):
    return
  console.say(
    f'  {label / "pairs.json"} was labeled by another model ({labeled_by}) than {sft} '
    f'is now ({tuned.fingerprint}); configs/label.py with '
    '--config.checkpoint.on_change=restart labels again'
  )


def narrated(settings: LabelConfig) -> dict[str, Any]:
  """Returns how narratives are written, for the summary of the stage label."""
  return {
    'clip_frames': settings.clip_frames,
    'caption_tokens': settings.caption_tokens,
    'caption_prompt': prompts.load(settings.caption_prompt),
  }


def say_other_narratives(label: pathlib.Path, judge: LabelConfig) -> None:
  """Prints it where PPO writes narratives otherwise than the pairs have them.

  Nothing is printed where it is not known how these were written.

  Args:
    label: folder of the stage.
    judge: `config.judge` of PPO.
  """
  summary = artifacts.read_summary(label) or {}
  pairs, here = summary.get('narratives'), narrated(judge)
  names = [name for name in here if pairs and pairs.get(name) != here[name]]
  if names:
    console.say(
      f'  the reward model was trained on the narratives of {label / "pairs.json"}, '
      f'which were written with another {" and ".join(names)} than config.judge has; '
      'PPO shows it narratives of another kind: give config.judge the values of '
      'config.label'
    )
