from vlm_rlaif_jax.labeling import narrative


def test_fifty_frames_are_three_clips():
  assert narrative.clip_windows(50, 20) == [(0, 20), (20, 40), (40, 50)]
  assert narrative.clip_windows(12, 4) == [(0, 4), (4, 8), (8, 12)]
  assert narrative.clip_windows(5, 20) == [(0, 5)]
