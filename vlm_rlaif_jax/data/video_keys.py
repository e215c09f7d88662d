"""Names videos by their contents, so that their features survive a move.

Reading all videos to name them takes as long as decoding them, so contents are read
once: an index remembers them by path below the root, size and time. A file that
changed one of these is read again, and has its old name if its contents are the same.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping

from vlm_rlaif_jax.data import video
from vlm_rlaif_jax.data.video import Video

LINE = re.compile('([0-9a-f]{64}) ([0-9a-f]{64})')


class VideoIndex:
  """The contents of videos by their files.

  Args:
    root: folder of the videos.
    folder: where the index is kept. Each host writes a file of its own and reads all.
    host: number of this host.
  """

  def __init__(self, root: str | pathlib.Path, folder: pathlib.Path, host: int):
    self.root, self.folder = pathlib.Path(root), folder
    self.file = folder / f'videos-{host}.txt'
    self._contents: dict[str, str] = {}
    self.load()

  def load(self) -> None:
    """Reads what this and other indexes of the folder have written."""
    for file in sorted(self.folder.glob('videos-*.txt')):
      lines = file.read_text(errors='replace').splitlines()
      matches = (LINE.fullmatch(line) for line in lines)
      self._contents |= dict(match.groups() for match in matches if match)  # type: ignore

  def contents(self, paths: tuple[str, ...]) -> str:
    """Returns the digest of the contents of a video's files.

    Raises:
      VideoError: a file that is missing, empty or cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
      status = video.check_file(self.root / path)
      digest.update(f'{path}:{status.st_size}:{status.st_mtime_ns};'.encode())
    files = digest.hexdigest()
    if files not in self._contents:
      self._contents[files] = self._read(paths)
      with self.file.open('a') as file:
        file.write(f'{files} {self._contents[files]}\n')
    return self._contents[files]

  def _read(self, paths: tuple[str, ...]) -> str:
    """Reads all files of a video and returns their digest."""
    # Pictures and video files are read by other libraries, whatever they contain.
    digest = hashlib.sha256(f'{Video(paths).is_file};'.encode())
    for path in paths:
      try:
        with (self.root / path).open('rb') as file:
          digest.update(hashlib.file_digest(file, 'sha256').digest())
      except OSError as error:
        raise video.VideoError(
          f'{self.root / path}: cannot be read ({error.strerror})'
        ) from None
    return digest.hexdigest()


def together(contents: Iterable[str]) -> str:
  """Returns the digest of the contents of several videos, in any order."""
  return hashlib.sha256(''.join(sorted(set(contents))).encode()).hexdigest()[:16]


def by_name(contents: Mapping[tuple[str, ...], str]) -> str:
  """Returns the digest of the contents of videos, and of which video has which."""
  text = json.dumps(sorted(contents.items()))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_key(contents: str, clip: tuple[int, int] | None) -> str:
  """Returns the key of a sample's features: of its video and of its clip."""
  return hashlib.sha256(f'{contents}{clip!r}'.encode()).hexdigest()
