"""Looks at the fields of a row that nothing reads, for what they could mean.

What could say what is to be seen (a file, a part of a video), or that something is not
learned, is refused; other fields are left alone and reported once.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vlm_rlaif_jax.data.fields import FILMS, present
from vlm_rlaif_jax.data.pictures import EXTENSIONS
from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.data.video import Video

_SUFFIXES = (*FILMS, *EXTENSIONS, '.gif', '.npy', '.wav', '.mp3', '.flac')


def _set(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Words of a field's name. A field whose name has one of the first four could say what
# is seen, or when; one that has one of the labels as well only describes it.
_MEDIA = _set(
  'video vid movie film image img picture photo pic media audio clip youtube yt'
)
_FILES = _set('path file filename filepath')
_FRAMES = _set('frame nframe')
_TIMES = _set(
  'start end begin stop time timestamp starttime endtime timecode timespan sec seconds '
  'ts segment span interval range window moment offset crop trim temporal'
)
_LABELS = _set(
  'id name title type modality source src url caption description text category topic '
  'tag class genre duration length fps rate num n count total number width height size '
  'resolution ratio format codec hash md sha license quality score author transcript '
  'subtitle thumbnail narration summary question answer prompt instruction task info '
  'meta metadata dataset split version platform channel language lang model created '
  'updated modified response annotation annotator spent elapsed latency reason has is'
)
_AMOUNTS = _set('num n count total number rate width height size')

_WORD = re.compile(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+')
_DATE = re.compile(r'\d{4}-\d\d')
# Fields that say whether, or how much, a message or a row is learned.
_LEARNED = _set('weight loss loss_weight train trainable learn learnable')
_AMOUNTS_LEARNED = _set('weight loss_weight')  # of which 1 is all
_NOT_LEARNED = _set('mask masked ignore ignored skip skipped exclude excluded')


def check_unread(
  row: Mapping[str, Any],
  names: Collection[str],
  video: Video | None,
  where: str,
  ignored: Collection[str] = (),
) -> None:
  """Raises DataError for a field that could say what is seen, and is not read.

  Args:
    names: the fields that are read.
    ignored: `data.ignore_fields`.
  """
  for name, value in _unread(row, names, ignored):
    if _says_not_learned(name.rpartition('.')[2], value):
      raise DataError(
        f'{where}: {name} says that this is not learned, or in part, and is not read; '
        'leave the row out, or the field'
      )
    if _could_say(name, value, video):
      raise DataError(
        f'{where}: {name} could say what is to be seen, and is not read; write the '
        'file to video or images (a part of it to clip), leave the field out, or '
        f'--config.data.ignore_fields=\'("{name}",)\''
      )


def _says_not_learned(name: str, value: Any) -> bool:
  """Returns whether a field says that a message or a row is not learned in full."""
  if name in _LEARNED and value in (0, False):
    return True
  if name in _AMOUNTS_LEARNED and isinstance(value, int | float):
    return value != 1
  return name in _NOT_LEARNED and value is True


def unread(row: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
  """Yields the fields of a row that say something and are not read."""
  yield from (name for name, value in present(row).items() if name not in names)


def _unread(
  row: Mapping[str, Any],
  names: Collection[str],
  ignored: Collection[str],
  path: str = '',
) -> Iterator[tuple[str, Any]]:
  """Yields (name, value) of the fields that are not read, those of objects as `a.b`."""
  for name, value in present(row).items():
    full = f'{path}{name}'
    if name in names or full in ignored:
      continue
    yield full, value
    if isinstance(value, dict):
      yield from _unread(value, (), ignored, f'{full}.')


def _could_say(name: str, value: Any, video: Video | None) -> bool:
  """Returns whether a field could name a file, a part of a video or frames of it."""
  if value is False or value in ('', [], {}):
    return False
  words = {w.lower() for w in _WORD.findall(name.rpartition('.')[2])}
  words |= {word.removesuffix('s') for word in words}
  describes = bool(words & _LABELS)
  texts = list(_texts(value))
  files = {os.path.basename(t) for t in texts if t.lower().endswith(_SUFFIXES)}
  own = {os.path.basename(path) for path in video.paths} if video else set()
  if files and files <= own:
    return False
  if files and not (video and describes):
    return True
  if words & _FRAMES:
    return not (video and words & _AMOUNTS)
  if words & _MEDIA:
    return not (video and describes)
  if words & _FILES and not video:
    return any(not os.path.splitext(text)[1] for text in texts)
  is_date = isinstance(value, str) and bool(_DATE.match(value))
  return bool(words & _TIMES) and not describes and not is_date


def _texts(value: Any) -> Iterator[str]:
  """Yields the texts in a value, at any depth."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for item in value:
      inner = item.values() if isinstance(item, dict) else (item,)
      for part in inner:
        yield from _texts(part)
