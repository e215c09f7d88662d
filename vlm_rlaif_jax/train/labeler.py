"""Which model labeled the pairs of the stage label, compared with the one there now.

Pairs are a model's judgments of its own answers. When SFT is run again, those of the
former model stay until the stage label is run again, too.
"""

import pathlib

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
