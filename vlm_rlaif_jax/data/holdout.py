"""Which videos are held out: a share that depends on their names, not on their order.

    a file, or a single picture     held out by its own path
    the pictures of a video         by their folder, and by what their names begin with
                                    where a folder has the pictures of several videos
    several names of one content    by the first of them in the alphabet

A video with all its rows is on one side, and a copy of it, too. Rows without a video
are never held out: nothing is measured on them.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable

from vlm_rlaif_jax.data.files import DataFiles
from vlm_rlaif_jax.data.video import Video

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
    self.held_out = {name for name in distinct if in_share(name, share, split)}
    self.all_in_share = bool(distinct) and self.held_out == distinct
    if self.all_in_share:
      self.held_out = set()

  def __contains__(self, video: Video | None) -> bool:
    if video is None:
      return False
    name = name_of(video, self.root)
    return self.names.get(name, name) in self.held_out

  def counts(self) -> str:
    """Returns how many of the videos are held out, as text."""
    videos = len(set(self.names.values()))
    return f'{len(self.held_out)} of {videos} video{"s" if videos > 1 else ""}'
