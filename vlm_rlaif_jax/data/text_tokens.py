"""Turns texts into what CLIP's text tower reads, also those that are too long for it.

A tower has a context of a few tokens (77 in CLIP), beginning and end of the text among
them. A longer text is cut into its sentences, and a longer sentence into windows:

    'A man runs. He stops.'   ->   [[a man runs .]] [[he stops .]]
    a sentence of 100 tokens  ->   [[75 of them] [the other 25]]
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.settings.build import UserError

CLIP_FILES = ('tokenizer.json', 'vocab.json')  # either says that there is one
_SENTENCE = re.compile(r'(?<=[.!?])\s+|\n+')


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """The tokenizer of a text tower.

  Attributes:
    pieces: returns the ids of a text, without beginning and end.
    start: ids before every text; CLIP has one, the tower of the tiny base none.
    end: the id of the end of a text, where the tower is read.
  """

  pieces: Callable[[str], Sequence[int]]
  start: tuple[int, ...]
  end: int

  def room(self, context: int) -> int:
    """Returns how many pieces fit into a context."""
    return context - len(self.start) - 1

  def is_long(self, text: str, context: int) -> bool:
    """Returns whether a text does not fit into a context."""
    return len(self.pieces(text)) > self.room(context)

  def windows(self, text: str, context: int) -> list[list[tuple[int, ...]]]:
    """Returns the ids of a text by sentence and window, with beginnings and ends.

    A text that fits is one window; blank sentences are left out.
    """
    ids, room = self.pieces(text), self.room(context)
    parts = [ids]
    if len(ids) > room:
      sentences = (self.pieces(part) for part in _SENTENCE.split(text))
      parts = [sentence for sentence in sentences if len(sentence)]
    return [
      [
        (*self.start, *part[first : first + room], self.end)
        for first in range(0, max(len(part), 1), room)
      ]
      for part in parts
    ]


def load_clip(folder: pathlib.Path, rows: int, end: int) -> TextTokenizer:
  """Reads CLIP's tokenizer: `tokenizer.json`, or `vocab.json` with `merges.txt`.

  Args:
    rows: of the tower's embedding.
    end: the id at which the tower is read.

  Raises:
    UserError: there is none, it cannot be read, or it is of another tower.
  """
  import transformers

  if not any((folder / name).is_file() for name in CLIP_FILES):
    raise UserError(
      f'{folder}: no tokenizer of a text tower ({" or ".join(CLIP_FILES)}); copy the '
      'tokenizer files of the CLIP checkpoint there'
    )
  try:
    whole: Any = transformers.CLIPTokenizer.from_pretrained(
      folder, local_files_only=True
    )
    backend = whole.backend_tokenizer
    backend.no_truncation()  # tokenizer.json keeps those of the last call
    backend.no_padding()
    vocab = backend.get_vocab()
    start, stop = vocab[whole.bos_token], vocab[whole.eos_token]
  except Exception as error:  # of json, tokenizers, transformers: each has its own
    line = (str(error).splitlines() or [repr(error)])[0]
    raise UserError(f'{folder}: its tokenizer cannot be read ({line})') from None
  largest = max(vocab.values())
  if largest >= rows or stop != end:
    raise UserError(
      f'{folder}: its tokenizer has ids up to {largest} and ends texts with {stop}; '
      f'expected ids below {rows} and the end {end}, those of the text tower'
    )

  def pieces(text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids

  return TextTokenizer(pieces, (start,), end)


def of_base(tokenizer: tokens.Tokenizer, end: int) -> TextTokenizer:
  """Returns the tokenizer of a base, where its text tower was trained with that one."""
  return TextTokenizer(tokenizer.pieces, (), end)
