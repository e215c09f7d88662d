"""Holds out as many samples as an evaluation reads, whole videos at a time.

A share of the videos may be held out (`data.holdout`). Where it has more samples than
are evaluated, the others are trained on: nothing is left out of both.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from vlm_rlaif_jax.data.video import Video

T = TypeVar('T')


def split(
  items: Sequence[T],
  video_of: Callable[[T], Video | None],
  is_candidate: Callable[[Video | None], bool],
  count: int,
  never_trained: Callable[[Video | None], bool] = lambda video: False,
) -> tuple[list[T], list[T]]:
  """Returns samples to train on, and `count` held-out ones, or as many as there are.

  Videos are chosen in the order of the file until they have enough samples; what the
  last one has beyond them is in neither list.

  Args:
    is_candidate: whether a video may be held out.
    never_trained: whether a video is held out for a later stage, too, which asks about
      all of them: it may be evaluated here, but is not trained on.
  """
  videos = [video_of(item) for item in items]
  later = [never_trained(video) for video in videos]
  candidates: dict[str, list[T]] = {}
  for item, video, is_later in zip(items, videos, later, strict=True):
    if is_later or is_candidate(video):
      candidates.setdefault(_place(video), []).append(item)
  held_out: list[T] = []
  chosen = set()
  for place, members in candidates.items():
    if len(held_out) >= count:
      break
    held_out += members
    chosen.add(place)
  train = [
    item
    for item, video, is_later in zip(items, videos, later, strict=True)
    if not is_later and _place(video) not in chosen
  ]
  return train, held_out[:count]


def _place(video: Video | None) -> str:
  """Returns what all clips of a video share: its file, or the folder of its frames."""
  if video is None:
    return ''
  path = video.paths[0]
  return path if len(video.paths) == 1 else str(pathlib.PurePath(path).parent)
