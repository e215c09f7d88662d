"""Ranks against brute force, ties, weights of captions, and controls."""

import numpy as np
import pytest
import scipy.stats

from tests.evals import text_vectors
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import retrieval_scores
from vlm_rlaif_jax.evals.records import Item


def items(captions, **fields):
  return [
    Item(
      key=str(i),
      video=Video((f'{i}.mp4',)),
      video_name=str(i),
      prompts=('Describe it.',),
      reference=texts[0],
      fields={'captions': list(texts), **{k: v[i] for k, v in fields.items()}},
    )
    for i, texts in enumerate(captions)
  ]


def mean(values, name):
  return float(np.mean(values[name]))


def test_ranks_equal_brute_force_over_uneven_captions(rng):
  owners = np.repeat(np.arange(9), rng.integers(1, 6, 9))
  similarity = rng.normal(size=(len(owners), 9)).astype(np.float32)
  similarity[rng.random(similarity.shape) < 0.3] = 0.5  # ties
  ranks = retrieval_scores.ranks(similarity, owners)
  for caption, owner in enumerate(owners):
    others = np.delete(similarity[caption], owner)
    worse = scipy.stats.rankdata(-np.append(others, similarity[caption, owner]), 'max')
    assert ranks.text_to_video[caption] == worse[-1]
  for video in range(9):
    own = max(
      s for s, o in zip(similarity[:, video], owners, strict=True) if o == video
    )
    wrong = similarity[owners != video, video]
    assert ranks.video_to_text[video] == 1 + sum(x >= own for x in wrong)


def test_one_description_for_all_videos_is_last_everywhere():
  captions = [['a cat'], ['a dog'], ['a bird'], ['a fish']]
  same = text_vectors.outputs(['something happens'] * 4)
  values = retrieval_scores.score(items(captions), same, text_vectors.tools())
  assert mean(values, 't2v_r1') == 0 and mean(values, 't2v_rank') == 4
  assert mean(values, 't2v_r5') == 1  # four videos are all among the first five


def test_what_is_no_number_is_never_first():
  similarity = np.asarray([[np.nan, 0.2], [0.3, 0.4]])
  ranks = retrieval_scores.ranks(similarity, np.asarray([0, 1]))
  assert ranks.text_to_video.tolist() == [2, 1]
  assert ranks.video_to_text.tolist() == [2, 1]


def test_the_rank_of_a_copy_ignores_the_error_of_a_product():
  """Equal texts have equal vectors, whose products may differ in the last bit."""
  similarity = np.asarray([[0.9, 0.9 - 1e-7], [0.1, 0.9]], np.float32)
  ranks = retrieval_scores.ranks(similarity, np.arange(2))
  assert ranks.text_to_video.tolist() == [2, 1]


def test_recall_is_a_mean_over_captions_not_over_videos():
  """Of the first video one of three captions is found, of the second its only one."""
  captions = [['a red ball', 'a dog barks', 'a tree falls'], ['a ship sails']]
  described = text_vectors.outputs(
    ['a red ball', 'a ship sails a dog barks tree falls']
  )
  values = retrieval_scores.score(items(captions), described, text_vectors.tools())
  assert mean(values, 't2v_r1') == pytest.approx(2 / 4)
  assert values['t2v_r1'] == pytest.approx([1 * 2 / 4, 1 * 2 / 4])
  assert values['t2v_rank'] == pytest.approx([(1 + 2 + 2) * 2 / 4, 1 * 2 / 4])


def test_references_as_descriptions_are_perfect_and_shuffled_ones_chance():
  captions = [[f'{a} {b} moves {c}'] for a in 'xyzw' for b in 'pqrs' for c in 'klmn']
  own = text_vectors.outputs([texts[0] for texts in captions])
  values = retrieval_scores.score(items(captions), own, text_vectors.tools())
  for name in ('t2v_r1', 'v2t_r1', 'ceiling_t2v_r1', 'ceiling_v2t_r10'):
    assert mean(values, name) == 1, name
  assert mean(values, 'shuffled_t2v_r1') <= 2 / 64
  assert mean(values, 'shuffled_t2v_r10') < 0.35
  numbers = retrieval_scores.median_ranks(items(captions), own, text_vectors.tools())
  assert numbers['t2v_median_rank'].value == 1
  assert numbers['v2t_median_rank'].interval == (1, 1)
  other = text_vectors.outputs([texts[0] for texts in captions[1:] + captions[:1]])
  shifted = retrieval_scores.score(items(captions), other, text_vectors.tools())
  assert mean(shifted, 't2v_r1') == 0
  numbers = retrieval_scores.median_ranks(items(captions), other, text_vectors.tools())
  assert numbers['t2v_median_rank'].value > 3
  low, high = numbers['t2v_median_rank'].interval
  assert low <= numbers['t2v_median_rank'].value <= high
  assert numbers['t2v_median_rank'].n == 64
  one = text_vectors.outputs(captions[0])
  numbers = retrieval_scores.median_ranks(
    items(captions[:1]), one, text_vectors.tools()
  )
  assert numbers['t2v_median_rank'].interval is None, 'of one video'


def test_the_ceiling_describes_by_a_caption_that_is_no_query():
  """One that is no query; else the first, which is none then; else the only one."""
  captions = [['a cat', 'a cat sleeps'], ['a dog'], ['a cat too']]
  others = [[], ['a cat'], []]
  values = retrieval_scores.score(
    items(captions, others=others), text_vectors.outputs('abc'), text_vectors.tools()
  )
  # 'a cat' describes both of the first two: the query 'a cat sleeps' has a tie, and
  # 'a dog' is nearer to nothing.
  assert mean(values, 'ceiling_t2v_r1') == pytest.approx(1 / 3)
  assert values['ceiling_t2v_r1'] == pytest.approx([0, 0, 1])


def test_hard_negatives_are_compared_with_the_captions_of_the_video_alone():
  captions = [['the ball moves left'], ['the ball moves left']]
  wrong = [['the ball moves right', 'the cube moves left'], ['the ball moves left']]
  values = retrieval_scores.score(
    items(captions, negatives=wrong),
    text_vectors.outputs(['the ball moves left'] * 2),
    text_vectors.tools(),
  )
  assert values['hard_r1'] == [1, 0]  # a tie is wrong


def test_lengths_stand_beside_the_recalls():
  captions = [['a cat'], ['a dog']]
  described = text_vectors.outputs(['word ' * 20, 'a dog'])
  values = retrieval_scores.score(items(captions), described, text_vectors.tools())
  assert values['words'] == [20, 2] and values['over_limit'] == [1, 0]
