"""What is displayed of held-out responses."""

import numpy as np

from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.rl import media
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import DataConfig


def test_responses_are_a_table_with_histograms(tmp_path):
  item = Example('a', Video(('gone.mp4',)), (('What | happens?', ''),), {})
  ids = np.array([5, 6, PAD])
  responses = [(item, ids, 0.5), (item, np.array([5, PAD, PAD]), 2.0)] * 6
  displayed = media.of_responses(
    responses, lambda ids: f'ids {ids[0]}', DataConfig(root=str(tmp_path))
  )
  lines = displayed.texts['held_out/responses'].splitlines()
  assert len(lines) == 2 + media.TEXTS
  assert lines[2] == '| What \\| happens? | ids 5 | 0.500 |'
  assert displayed.pictures == {}  # the video was moved away
  assert displayed.histograms['held_out/lengths'].tolist() == [2, 1] * 6
  assert displayed.histograms['held_out/rewards'].tolist() == [0.5, 2.0] * 6
