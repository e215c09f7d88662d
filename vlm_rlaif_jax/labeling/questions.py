"""The questions to label: those of the preference file that are about a video."""

import functools
from collections.abc import Sequence

from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.inference.features import Progress, VisualFeatures
from vlm_rlaif_jax.labeling.lengths import check_lengths
from vlm_rlaif_jax.labeling.narrative import Window, clips_of, videos_of
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.settings.sections import DataConfig


def read_questions(
  settings: LabelRun,
  data: DataConfig,
  skipped: Skipped,
  tokenizer: Tokenizer,
  features: VisualFeatures,
  windows: Sequence[Window],
  progress: Progress,
) -> list[Example]:
  """Returns the usable questions; encodes their videos, and the clips of these.

  Of a file that the user names in `data.train`, held-out videos are left to evaluation.

  Args:
    data: of the run, with its root.
    windows: of the clips.
    progress: wraps the videos that are encoded.
  """
  held_out = False if data.train else None
  items = readers.read(data, 'preference', skipped, held_out)
  items = [item for item in items if item.video is not None]
  # Texts before videos: one that is too long is refused before anything is encoded.
  check = functools.partial(check_lengths, tokenizer, settings, windows)
  checked = (skipped.attempt(functools.partial(check, item)) for item in items)
  items = [item for item in checked if item is not None]
  videos = [
    part for video in videos_of(items) for part in [video, *clips_of(video, windows)]
  ]
  bad = features.encode(videos, 'tokens', progress)
  items = readers.drop_unreadable(items, bad, skipped)
  if not items:
    raise examples.DataError(
      f'{readers.locate(data, "preference")}: no usable question about a video'
    )
  return items
