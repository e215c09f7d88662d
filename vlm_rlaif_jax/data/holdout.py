"""Which videos are held out: a share that depends on their names, not on their order.

    a file, or a single picture     held out by its own path
    the pictures of a video         by their folder, and by what their names begin with
                                    where a folder has the pictures of several videos
    several names of one content    by the first of them in the alphabet

A video with all its rows is on one side, and a copy of it, too. Rows without a video
are never held out: nothing is measured on them. Where the share has more samples than
an evaluation reads, the others are trained on (`split`): nothing is left out of both.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from vlm_rlaif_jax.data.files import DataFiles
from vlm_rlaif_jax.data.video import Video

T = TypeVar('T')

# Of one file for every stage, evaluation asks about all videos of the share ''. What is
# measured before, and may choose a policy, is of another share of the other videos.
OTHER_SHARE = 'pairs'

# Beginnings of the names of pictures that say nothing about the video.
_PLAIN = {'', 'frame', 'frames', 'image', 'images', 'img', 'picture', 'pic', 'f'}


def name_of(video: Video, root: str | pathlib.Path = '') -> str:
  """Returns the name by which a video is held out, relative to the root."""
  paths = [os.path.normpath(path) for path in video.paths]
  if root and os.path.isabs(paths[0]):
    inside = os.path.relpath(paths[0], os.path.abspath(root))
    if not inside.startswith(os.pardir):
      paths = [os.path.relpath(path, os.path.abspath(root)) for path in paths]
  if len(paths) == 1:
    return paths[0]
  folder = str(pathlib.PurePath(paths[0]).parent)
  stems = [pathlib.PurePath(path).stem for path in paths]
  start = os.path.commonprefix(stems)  # noqa: RUF071 - of letters, not of folders
  start = start.rstrip('0123456789')
  plain = start.rstrip('_-').lower() in _PLAIN
  is_name = start[-1:].isalpha() or start.endswith(('_', '-'))
  return folder if plain or not is_name else f'{folder}/{start}'


def in_share(name: str, share: float, split: str = '') -> bool:
  """Returns whether a name is in a share.

  Args:
    split: names another share, independent of that of ''.
  """
  digest = hashlib.sha256((split + name).encode(errors='surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64


def held_out_of(names: set[str], share: float, split: str = '') -> set[str]:
  """Returns the names in a share; none where all would be, as with a single one.

  Args:
    split: as of `in_share`.
  """
  held_out = {name for name in names if in_share(name, share, split)}
  return set() if held_out == names else held_out


class Holdout:
  """The held-out share of a set of videos.

  Where all of them would be held out, as with a single one, none is.

  Args:
    videos: all videos of a file, of rows that a stage uses and of others.
    share: `data.holdout`.
    files: where the videos are; None: they are told apart by their names alone.
    split: names another share, independent of that of ''.
  """

  def __init__(
    self,
    videos: Iterable[Video],
    share: float,
    files: DataFiles | None = None,
    split: str = '',
  ):
    self.root = files.root if files else ''
    samples: dict[str, tuple[str, ...]] = {}
    for video in videos:
      paths = video.paths
      some = tuple(dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1])))
      samples.setdefault(name_of(video, self.root), some)
    self.names = {name: name for name in samples}
    for group in files.same(samples) if files and share else ():
      self.names |= dict.fromkeys(group, min(group))
    distinct = set(self.names.values())
    self.held_out = held_out_of(distinct, share, split)
    self.all_in_share = not self.held_out and any(
      in_share(name, share, split) for name in distinct
    )

  def __contains__(self, video: Video | None) -> bool:
    return self.name(video) in self.held_out

  def name(self, video: Video | None) -> str:
    """Returns the name that all copies of a video share; '' of no video."""
    if video is None:
      return ''
    name = name_of(video, self.root)
    return self.names.get(name, name)

  def counts(self) -> str:
    """Returns how many of the videos are held out, as text."""
    videos = len(set(self.names.values()))
    return f'{len(self.held_out)} of {videos} video{"s" if videos > 1 else ""}'


def split(
  items: Sequence[T],
  name: Callable[[T], str],
  is_candidate: Callable[[T], bool],
  count: int,
  is_reserved: Callable[[T], bool] = lambda item: False,
) -> tuple[list[T], list[T]]:
  """Returns samples to train on, and `count` held-out ones, or as many as there are.

  Videos are taken in the order of the file until they have enough samples; what the
  last one has beyond them is in neither list, and so are reserved samples.

  Args:
    name: of the video of a sample, one for all its copies.
    is_candidate: whether the video of a sample may be held out.
    is_reserved: whether it is held out for evaluation, which asks about all of them:
      neither is trained on it, nor anything chosen by it.
  """
  candidates: dict[str, list[T]] = {}
  for item in items:
    if is_candidate(item) and not is_reserved(item):
      candidates.setdefault(name(item), []).append(item)
  held_out: list[T] = []
  videos = set()
  for video, members in candidates.items():
    if len(held_out) >= count:
      break
    held_out += members
    videos.add(video)
  train = [item for item in items if not is_reserved(item) and name(item) not in videos]
  return train, held_out[:count]
