"""Ranks of captions among descriptions and of descriptions among captions.

A rank is one more than the candidates that are wrong and at least as similar: ties are
broken pessimistically, so a model that says the same of every video is last everywhere.

The item is a video, and a video may have several captions; a value is the sum over its
captions times items / captions, so that the mean over items is that over captions. Text
to video has a query a caption in all that is published; intervals resample videos.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlm_rlaif_jax.data import words
from vlm_rlaif_jax.evals.benchmarks.benchmark import Number, Outputs, Tools
from vlm_rlaif_jax.evals.records import Item, Values

TOP = (1, 5, 10)
TIE = 1e-6  # cosines that differ by less are equal: the error of float32
SEED = 0  # of the order that gives every video the description of another
DRAWS = 1000  # bootstrap samples of a median
NO_SHARES = (*('t2v_rank', 'v2t_rank', 't2v_median_rank', 'v2t_median_rank', 'words'),)
HEADLINE = ('t2v_r1', 't2v_r5', 't2v_r10', 'v2t_r1', 'v2t_r5', 'v2t_r10')


class Ranks(NamedTuple):
  """Ranks from 1: of each caption's video, and of each description's best caption."""

  text_to_video: np.ndarray  # int[captions]
  video_to_text: np.ndarray  # int[videos]


def ranks(similarity: np.ndarray, owners: np.ndarray) -> Ranks:
  """Returns the ranks of the right candidates, wrong ones first where they tie.

  Args:
    similarity: `[captions, videos]`.
    owners: `int[captions]`, the video of each caption; each video has one at least.
  """
  captions, videos = similarity.shape
  is_own = owners[:, None] == np.arange(videos)[None]
  own = similarity[np.arange(captions), owners]
  # What is no number is not less, so that it never puts the right one first.
  ahead = ~(similarity < own[:, None] - TIE) & ~is_own
  best = np.max(np.where(is_own, similarity, -np.inf), axis=0)
  before = ~(similarity < best[None] - TIE) & ~is_own
  return Ranks(1 + np.sum(ahead, axis=1), 1 + np.sum(before, axis=0))


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns recall at 1, 5 and 10 and ranks both ways, lengths, and controls.

  Returns:
    t2v_r1, v2t_r1, ...: recall of text to video, and of video to text.
    t2v_rank, v2t_rank: ranks; their means are mean ranks.
    hard_r1: share of descriptions nearer to a right caption than to every hard
      negative, where the annotations have some.
    words: of the description; over_limit: it exceeds the context of the text tower.
    shuffled_...: the same with the description of another video: chance.
    ceiling_...: the same with a right caption as the description.
  """
  assert tools.encode_texts is not None
  descriptions = [texts[0] for texts in outputs.predictions]
  encoded = tools.encode_texts(descriptions)
  captions, owners = _captions(items)
  texts = tools.encode_texts(captions).vectors
  values: dict[str, Sequence[float]] = {}
  similarity = texts @ encoded.vectors.T
  values |= _recalls(ranks(similarity, owners), owners)
  if all(item.fields.get('negatives') for item in items):
    values['hard_r1'] = _hard_choices(items, encoded.vectors, tools)
  values['words'] = [float(words.count(text)) for text in descriptions]
  values['over_limit'] = [float(flag) for flag in encoded.is_long]
  if len(items) > 1:
    shuffled = ranks(similarity[:, _derangement(len(items))], owners)
    values |= _named('shuffled', _recalls(shuffled, owners))
  values |= _named('ceiling', _ceiling(items, texts, owners, tools))
  return values


def median_ranks(
  items: Sequence[Item], outputs: Outputs, tools: Tools
) -> dict[str, Number]:
  """Returns the median rank both ways; intervals resample whole videos."""
  assert tools.encode_texts is not None
  vectors = tools.encode_texts([texts[0] for texts in outputs.predictions]).vectors
  captions, owners = _captions(items)
  rank = ranks(tools.encode_texts(captions).vectors @ vectors.T, owners)
  videos = np.arange(len(items))
  return {
    't2v_median_rank': _median(rank.text_to_video, owners, len(items)),
    'v2t_median_rank': _median(rank.video_to_text, videos, len(items)),
  }


def _median(values: np.ndarray, owners: np.ndarray, videos: int) -> Number:
  """Returns the median of values and its bootstrap interval over videos."""
  if videos < 2:
    return Number(float(np.median(values)), None, len(values))
  rng = np.random.default_rng(SEED)
  medians = []
  for _ in range(DRAWS):
    times = np.bincount(rng.integers(videos, size=videos), minlength=videos)
    medians.append(np.median(np.repeat(values, times[owners])))
  low, high = np.quantile(medians, [0.025, 0.975])
  return Number(float(np.median(values)), (float(low), float(high)), len(values))


def _captions(items: Sequence[Item]) -> tuple[list[str], np.ndarray]:
  """Returns all captions that are queries, and the item of each."""
  counts = [len(item.fields['captions']) for item in items]
  texts = [text for item in items for text in item.fields['captions']]
  return texts, np.repeat(np.arange(len(items)), counts)


def _recalls(
  rank: Ranks, owners: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, list[float]]:
  """Returns recalls and ranks as values an item.

  Args:
    weights: `[captions]`, 0 for captions that are no queries; None: all are.
  """
  videos = len(rank.video_to_text)
  weights = np.ones(len(owners)) if weights is None else weights

  def by_video(values: np.ndarray) -> list[float]:
    totals = np.bincount(owners, weights=values * weights, minlength=videos)
    return (totals * videos / np.sum(weights)).tolist()

  values = {f't2v_r{k}': by_video(rank.text_to_video <= k) for k in TOP}
  values |= {f'v2t_r{k}': (rank.video_to_text <= k) * 1.0 for k in TOP}
  values['t2v_rank'] = by_video(rank.text_to_video)
  values['v2t_rank'] = rank.video_to_text * 1.0
  return {name: list(map(float, part)) for name, part in values.items()}


def _named(control: str, values: dict[str, list[float]]) -> dict[str, list[float]]:
  """Returns the values of a control under names of its own, without ranks."""
  return {
    f'{control}_{name}': part
    for name, part in values.items()
    if not name.endswith('rank')
  }


def _derangement(count: int) -> np.ndarray:
  """Returns a random order in which nothing is at its own place."""
  order = np.random.default_rng(SEED).permutation(count)
  shuffled = np.empty(count, int)
  shuffled[order] = np.roll(order, 1)
  return shuffled


def _ceiling(
  items: Sequence[Item], texts: np.ndarray, owners: np.ndarray, tools: Tools
) -> dict[str, list[float]]:
  """Returns values where a right caption of each video is its description.

  It is a caption that is no query; where a video has none, its first query, which is
  then no query any more; and where that is the only one, that one, found by itself.
  """
  assert tools.encode_texts is not None
  firsts = np.searchsorted(owners, np.arange(len(items)))
  counts = np.bincount(owners, minlength=len(items))
  weights = np.ones(len(owners))
  descriptions = []
  for item, first, count in zip(items, firsts, counts, strict=True):
    others = item.fields.get('others')
    descriptions.append(others[0] if others else item.fields['captions'][0])
    if not others and count > 1:
      weights[first] = 0
  vectors = tools.encode_texts(descriptions).vectors
  queries = weights > 0
  rank = ranks(texts[queries] @ vectors.T, owners[queries])
  return _recalls(rank, owners[queries])


def _hard_choices(
  items: Sequence[Item], vectors: np.ndarray, tools: Tools
) -> list[float]:
  """Returns whether each description is nearest to a right one of similar captions."""
  assert tools.encode_texts is not None
  values = []
  for item, vector in zip(items, vectors, strict=True):
    right = tools.encode_texts(item.fields['captions']).vectors @ vector
    others = tools.encode_texts(item.fields['negatives']).vectors @ vector
    values.append(float(np.max(right) > np.max(others) + TIE))
  return values
