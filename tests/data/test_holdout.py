"""What is held out is evaluated; everything else is trained on."""

from vlm_rlaif_jax.data import examples, holdout
from vlm_rlaif_jax.data.video import Video

# Samples as (video, number): five clips of a.mp4, and one sample of each other.
ITEMS = [(Video(('a.mp4',), (i, i + 1)), i) for i in range(5)]
ITEMS += [(Video((f'{name}.mp4',)), 9) for name in 'bcdefg']


def names(items) -> str:
  return ''.join(video.paths[0][0] for video, _ in items)


def split(count, candidates='abcdefg', later=''):
  return holdout.split(
    ITEMS,
    lambda item: item[0],
    lambda video: video.paths[0][0] in candidates,
    count,
    lambda video: video.paths[0][0] in later,
  )


def test_no_more_is_held_out_than_is_evaluated():
  train, held_out = split(2, 'bdf')
  assert (names(train), names(held_out)) == ('aaaaacefg', 'bd')
  train, held_out = split(9, 'bdf')
  assert (names(train), names(held_out)) == ('aaaaaceg', 'bdf')
  assert split(9, '') == (ITEMS, [])


def test_clips_of_one_video_are_on_one_side():
  train, held_out = split(2)
  assert (names(train), names(held_out)) == ('bcdefg', 'aa')


def test_what_a_later_stage_asks_about_is_never_trained_on():
  train, held_out = split(1, '', later='cd')
  assert (names(train), names(held_out)) == ('aaaaabefg', 'c')


def test_the_sizes_of_the_released_runs():
  """99,000 prompts give 386 iterations of 256, 39,000 pairs 2,406 steps of 16."""
  for total, a_video, count, batch, steps in (
    (99_000, 10, 64, 256, 386),
    (39_000, 4, 500, 16, 2406),
  ):
    items = [(Video((f'{i // a_video}.mp4',)), i) for i in range(total)]
    train, held_out = holdout.split(
      items, lambda item: item[0], lambda video: examples.is_held_out(video, 0.1), count
    )
    assert len(held_out) == count
    assert len(train) // batch == steps
