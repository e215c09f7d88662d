"""Compares the fields of a row with one another: which video it is about, and where.

What is not understood is refused if it could say what is to be seen (a file, a second
mark); fields that nothing reads are those of `unread_fields`.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data.prompts import BOS, EOS, MARKS
from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.data.video import Video

VISUAL = ('video', 'videos', 'images', 'image')  # fields that name what is seen
ROW = frozenset(  # fields of conversations, prompts and pairs
  (*VISUAL, 'clip', 'conversations', 'messages', 'id', 'uid', 'output_1', 'output_2')
) | {'preference', 'narrative', 'margin', 'answer_type', 'length_bonus_multiplier'}
BENCHMARK = frozenset(
  (*VISUAL, 'clip', 'video_name', 'question_id', 'question', 'answer', 'kind')
)
MESSAGE = frozenset(('from', 'role', 'value', 'content'))

FILMS = ('.mp4', '.webm', '.mkv', '.avi', '.mov', '.mpg', '.mpeg', '.m4v', '.wmv')
FILMS += ('.flv', '.ts', '.3gp', '.ogv')
_SURROGATE = re.compile('[\ud800-\udfff]')
# What other programs write in place of <image> and <video>.
_OTHER_MARK = re.compile(
  r'(?:<|&lt;)\|?\s*(?:image|video|img|vid)s?'
  r'(?:[\s_-]?(?:\d+|pad|token|placeholder|here|start|end|feature))*\s*\|?(?:>|&gt;)'
  r'|<\|?(?:im|vi|vision)_(?:start|end|patch|pad)\|?>',
  re.IGNORECASE,
)
# Tokens of LLaMA and of the templates of other programs, which are no text.
_SPECIAL = re.compile(
  r'<unk>|<\|(?:im_start|im_end|endoftext|eot_id|eom_id|begin_of_text|end_of_text|'
  r'start_header_id|end_header_id|user|assistant|system|end)\|>'
)


def present(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row without the fields that are null or NaN, as tables write them."""
  return {
    name: value
    for name, value in row.items()
    if value is not None and not (isinstance(value, float) and math.isnan(value))
  }


def required(row: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
  """Returns a field of a row; raises DataError if it is missing or of another type."""
  if name not in row:
    raise DataError(f'{where}: missing key {name!r}')
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise DataError(
      f'{where}: {name} must be a {kind.__name__}, got {type(row[name]).__name__}'
    )
  return row[name]


# ------------------------------------------------------------------- what is seen


def video_of(row: Mapping[str, Any], where: str) -> Video | None:
  """Returns the video that a row names, or None.

  Raises:
    DataError: two fields name different files, a field names none or several, or `clip`
      has no video.
  """
  row = present(row)
  named = {name: _paths(row[name], name, where) for name in VISUAL if name in row}
  filled = {name: paths for name, paths in named.items() if paths}
  if named and not filled:
    raise DataError(
      f'{where}: {next(iter(named))} is empty; name the file, or leave the field out '
      'of a row without a video'
    )
  if len(set(filled.values())) > 1:
    fields = ' and '.join(filled)
    raise DataError(
      f'{where}: {fields} name different files; a row is about one video: leave out '
      'all but one'
    )
  clip = _clip_of(row, where)
  if not filled:
    if clip is not None:
      raise DataError(f'{where}: clip is a part of a video, and the row names none')
    return None
  name, paths = next(iter(filled.items()))
  films = [path for path in paths if path.lower().endswith(FILMS)]
  if len(paths) > 1 and (films or name in ('video', 'videos')):
    raise DataError(
      f'{where}: {name} names {len(paths)} files; a row is about one video, or lists '
      'the pictures of its frames in images'
    )
  return Video(paths, clip)


def _paths(value: Any, name: str, where: str) -> tuple[str, ...]:
  """Returns the paths of a field; () if it is blank."""
  paths = [value] if isinstance(value, str) else value
  if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
    kind = 'a list of paths' if name in ('images', 'videos') else 'a path'
    raise DataError(f'{where}: {name} must be {kind}, got {value!r}')
  if not any(path.strip() for path in paths):
    return ()
  for path in paths:
    check_text(path, f'{where}: {name}')
    if not path.strip() or '\0' in path:
      raise DataError(f'{where}: {name}: {path!r} is no path')
  _check_order(paths, name, where)
  return tuple(paths)


def _check_order(paths: Sequence[str], name: str, where: str) -> None:
  """Raises DataError for frames that were sorted as texts: 1, 10, 11, 2.

  The order of a list is the order in time, whatever the names are; but a list that is
  sorted as text, and whose numbers then jump back, was sorted by mistake.
  """
  if list(paths) != sorted(paths):
    return
  numbers = [[int(digits) for digits in re.findall(r'\d+', path)] for path in paths]
  words = {re.sub(r'\d+', '0', path) for path in paths}
  if len(words) > 1 or numbers == sorted(numbers):
    return
  place = next(i for i in range(1, len(paths)) if numbers[i] < numbers[i - 1])
  raise DataError(
    f'{where}: {name} are sorted as text, so that {paths[place - 1]!r} comes before '
    f'{paths[place]!r}; list the frames in their order in time'
  )


def _clip_of(row: Mapping[str, Any], where: str) -> tuple[int, int] | None:
  clip = row.get('clip')
  if clip is None:
    return None
  if not (
    isinstance(clip, list)
    and len(clip) == 2
    and all(type(i) is int for i in clip)
    and 0 <= clip[0] < clip[1]
  ):
    raise DataError(f'{where}: clip must be [first, stop] frames, got {clip!r}')
  return clip[0], clip[1]


# ----------------------------------------------------------------- marks and texts


def check_marks(
  questions: Collection[tuple[str, str]], row: Mapping[str, Any], where: str
) -> None:
  """Raises DataError unless the marks in the questions fit the fields of the row.

  Args:
    questions: (place, text) of each question of the row, in order.
  """
  names = [name for name in VISUAL if present(row).get(name)]
  marks = [
    (place, mark)
    for place, text in questions
    for mark in re.findall('|'.join(MARKS), text)
  ]
  for place, text in questions:
    others = [m for m in _OTHER_MARK.findall(text) if m not in MARKS]
    if others:
      raise DataError(
        f'{place}: the mark {others[0]!r} would be read as text; write <video>'
      )
  if not marks:
    return
  place, mark = marks[0]
  if not names:
    raise DataError(
      f'{place}: the mark {mark} stands for a video or a picture, and the row has '
      'none; name the file in video, images or image'
    )
  if len(marks) > 1:
    raise DataError(
      f'{marks[1][0]}: {len(marks)} marks for one video ({names[0]}); leave the first'
    )
  if place != next(iter(questions))[0]:
    raise DataError(f'{place}: the mark {mark} must be in the first question')
  if mark == '<video>' and names == ['image']:
    raise DataError(
      f'{where}: the mark <video> in a question about a picture (image); write <image>'
    )


def is_blank(text: str) -> bool:
  """Returns whether nothing of a text can be seen: spaces, marks of width 0."""
  return not any(char.isprintable() and not char.isspace() for char in text)


def check_text(text: str, where: str, *, marks: bool = True) -> None:
  """Raises DataError for a text that no tokenizer, or no answer, may contain.

  Args:
    marks: whether it may hold a mark of a video.
  """
  if match := _SURROGATE.search(text):
    raise DataError(
      f'{where}: character {match.start()} is a lone surrogate ({match[0]!r}), half of '
      'a character that was cut; write the whole character or none'
    )
  if EOS in text:
    raise DataError(f'{where}: {EOS} in a text ends the sequence; leave it out')
  if BOS in text:
    raise DataError(
      f'{where}: {BOS} in a text is the token that begins a sequence; leave it out'
    )
  mark = next((mark for mark in MARKS if not marks and mark in text), None)
  if mark:
    raise DataError(f'{where}: the video mark {mark} in an answer; leave it out')


def check_special(text: str, where: str) -> None:
  """Raises DataError for a token of a template or of LLaMA that stands in a message."""
  if match := _SPECIAL.search(text):
    raise DataError(
      f'{where}: {match[0]} is a token of a template or tokenizer, and no text; leave '
      'it out'
    )
