"""Turns text into token ids with one video slot, target masks and padding.

Semantics are those of transformers 4.31 with the slow LLaMA tokenizer, whatever version
is installed: text after an inline </s> is tokenized on its own, with its own leading
space piece (later versions drop the piece, and then multi-turn labels are lost).

    A chat ... USER: <image>\\nWhat? ASSISTANT: A dog.</s>
    1 319 ... 29871 -200 29871 13 5618 29973 319 ... 29901 319 11203 29889 2
    labels:                                             0  1   1     1     1
"""

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import prompts, tokenizer_files
from vlm_rlaif_jax.data.prompts import BOS, EOS, VIDEO_MARK
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD, VIDEO

# Tokens that stand for no text: the picture is spliced in, pads are masked.
APART = (VIDEO_MARK, '<pad>')
_BYTE = re.compile('<0x[0-9A-F]{2}>')  # a piece of text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A Hugging Face tokenizer reduced to what the stages need.

  Attributes:
    unk: id of the unknown token, which answers do not show; PAD if there is none.
    rows: of the embedding; 0 if not known.
    other_ends: ids that end an answer beside `eos`, which is the one that is learned.
    fingerprint: of its files; '' if not known.
  """

  backend: object
  bos: int
  eos: int
  unk: int = PAD
  rows: int = 0
  other_ends: tuple[int, ...] = ()
  fingerprint: str = ''

  @property
  def ends(self) -> tuple[int, ...]:
    """Returns the ids that end an answer."""
    return (self.eos, *self.other_ends)

  @functools.cached_property
  def reserved(self) -> tuple[str, ...]:
    """Returns the tokens that stand for no text: of templates, pads, ends, unknown."""
    backend: Any = self.backend
    added = backend.added_tokens_decoder.values()
    names = {*backend.all_special_tokens, *(t.content for t in added if t.special)}
    return tuple(sorted(name for name in names if not _BYTE.fullmatch(name)))

  def check_plain(self, texts: Iterable[str]) -> None:
    """Raises UserError for a text of a data set that would be read as such a token."""
    for text in texts:
      for token in self.reserved:
        if token in text:
          raise UserError(
            f'{token!r} in a text is a token of the tokenizer, and no text; leave it '
            'out'
          )

  @property
  def vocab(self) -> int:
    """Returns the number of its ids, with those of gaps between them."""
    return 1 + max(self.backend.get_vocab().values())  # type: ignore[attr-defined]

  @functools.lru_cache(maxsize=65536)  # noqa: B019 - one tokenizer lives as long as a run
  def pieces(self, text: str) -> tuple[int, ...]:
    """Returns the ids of a text without BOS; each inline </s> is one id."""
    ids: list[int] = []
    parts = text.split(EOS)
    for index, part in enumerate(parts):
      if part:
        ids += self.backend(part, add_special_tokens=False)['input_ids']  # type: ignore
      if index < len(parts) - 1:
        ids.append(self.eos)
    if 0 < self.rows <= max(ids, default=0):
      name = self.backend.decode([max(ids)])  # type: ignore[attr-defined]
      raise UserError(
        f'{name!r} in a text is token {max(ids)}, the embedding has {self.rows} rows; '
        'leave it out of the text'
      )
    return tuple(ids)

  def encode(self, text: str) -> list[int]:
    """Returns the ids with BOS; a video mark becomes VIDEO.

    The two sides of the mark are tokenized apart, each with its leading space piece.
    """
    chunks = text.split(VIDEO_MARK)
    if len(chunks) > 2:
      raise ValueError(f'{len(chunks) - 1} video marks in one text, at most 1 expected')
    ids = [self.bos, *self.pieces(chunks[0])]
    for chunk in chunks[1:]:
      ids += [VIDEO, *self.pieces(chunk)]
    return ids

  def decode(self, ids: Iterable[Any]) -> str:
    """Returns the text of an answer, cut at the first id that ends one."""
    ids = [int(i) for i in ids]
    ids = list(itertools.takewhile(lambda i: i not in self.ends, ids))
    keep = [i for i in ids if i not in (PAD, VIDEO, self.bos, self.unk)]
    return self.backend.decode(keep).strip()  # type: ignore[attr-defined]

  def option_pieces(self, text: str) -> tuple[int, ...]:
    """Returns the ids of a short answer such as 'A', as it is learned.

    It is read behind 'ASSISTANT:'. LLaMA's pieces have the space before it wherever
    they are, byte-level ones only there: ' Yes' is another id than 'Yes'.
    """
    before, ids = self.pieces(prompts.ANSWER), self.pieces(f'{prompts.ANSWER} {text}')
    return tuple(ids[len(before) :] if ids[: len(before)] == before else ids)

  def option(self, text: str) -> int:
    """Returns the id of a one-piece answer such as 'Yes'; a space may be before it.

    Raises:
      UserError: it is no single token.
    """
    own = self.option_pieces(text)
    own = own[1:] if len(own) == 2 and self.backend.decode(own[:1]) == '' else own  # type: ignore
    if len(own) != 1:
      raise UserError(
        f'option {text!r}: must be one token after {prompts.ANSWER!r}, is {len(own)} '
        'of the tokenizer of this base, which cannot be asked for it'
      )
    return own[0]


def load_tokenizer(path: str | pathlib.Path, rows: int = 0) -> Tokenizer:
  """Reads the tokenizer of a folder: LLaMA's tokenizer.model, or tokenizer.json.

  Both are read as they are. What transformers makes of them by the class that
  tokenizer_config.json names depends on its version: 5.23 merges the pieces of
  tokenizer.model in another order ('a  b'), and drops spaces at the beginning.

  Args:
    rows: of the embedding that its ids are for; 0: not known.

  Raises:
    UserError: it cannot be read, or has tokens without a row.
  """
  path = pathlib.Path(path)
  backend = tokenizer_files.read_backend(path)
  tokenizer_files.check_sides(path)
  vocab = backend.get_vocab()
  bos, eos, unk = (
    vocab.get(str(named or usual))
    for named, usual in (
      (backend.bos_token, BOS),
      (backend.eos_token, EOS),
      (backend.unk_token, '<unk>'),
    )
  )
  if bos is None or eos is None:
    raise UserError(
      f'{path}: its tokenizer has no {"BOS" if bos is None else "EOS"}; '
      f'tokenizer_config.json names it, or it is {BOS if bos is None else EOS!r}'
    )
  apart = (*APART, backend.pad_token)
  without_row = [
    f'{text!r} ({i})'
    for text, i in sorted(vocab.items(), key=lambda item: item[1])
    if 0 < rows <= i and text not in apart
  ]
  if without_row:
    raise UserError(
      f'{path}: its tokenizer has {len(without_row)} tokens without a row in the '
      f'embedding, which has {rows}: {", ".join(without_row[:4])}; one of the two is '
      'of another network'
    )
  others = tuple(i for i in tokenizer_files.end_ids(path, backend) if i != eos)
  # some name their end as the unknown token, which must stay what it is
  unk = PAD if unk is None or unk in (bos, eos, *others) else unk
  fingerprint = tokenizer_files.fingerprint(path)
  return Tokenizer(backend, bos, eos, unk, rows, others, fingerprint)


def difference(own: Tokenizer, other: Tokenizer) -> str:
  """Returns which ids of one tokenizer mean something else in another; '': none does.

  The other one may have more added tokens, which texts of the first do not contain.
  """
  first: Any = own.backend
  second: Any = other.backend
  ids, expected = first.get_vocab(), second.get_vocab()
  apart = {first.pad_token, second.pad_token}
  if wrong := other_ids(ids, expected, apart):
    return wrong
  pieces = expected.keys() - second.get_added_vocab().keys()
  if missing := sorted(pieces - ids.keys() - {*APART, *apart}):
    return f'{missing[0]!r} ({expected[missing[0]]}) is a piece of the other alone'
  for name in ('bos', 'eos'):
    first_id, second_id = getattr(own, name), getattr(other, name)
    if first_id != second_id:
      return f'{name.upper()} is {first_id} and not {second_id}'
  return ''


def other_ids(
  ids: Mapping[str, int], expected: Mapping[str, int], apart: Iterable[str | None] = ()
) -> str:
  """Returns the first token, by id, that has another id than is expected; '': none.

  Args:
    apart: tokens that stand for no text, beside `APART`.
  """
  skipped = {*APART, *apart}
  for text, i in sorted(ids.items(), key=lambda item: item[1]):
    if expected.get(text) != i and text not in skipped:
      return f'{text!r} is {i} and not {expected.get(text, "there")}'
  return ''


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A tokenized conversation; `target[i]`: whether token i is to be predicted."""

  ids: np.ndarray  # int32[T]
  target: np.ndarray  # bool[T]


def encode_conversation(
  tokenizer: Tokenizer, turns: prompts.Turns, *, video: bool = True
) -> Encoded:
  """Tokenizes a conversation; the answers and their </s> are the targets."""
  ids: list[int] = []
  target: list[bool] = []
  text = prompts.render(turns, video=video)
  for index, round_text in enumerate(text.split(EOS)[:-1]):
    head, _, answer = round_text.partition(' ASSISTANT: ')
    prefix = tokenizer.encode(f'{head} ASSISTANT:')[index > 0 :]  # BOS comes once
    full = [*tokenizer.encode(round_text)[index > 0 :], tokenizer.eos]
    if full[: len(prefix)] != prefix or 'ASSISTANT: ' in answer:
      raise ValueError(f'cannot tell question from answer in {round_text!r}')
    ids += full
    target += [False] * len(prefix) + [True] * (len(full) - len(prefix))
  return Encoded(np.asarray(ids, np.int32), np.asarray(target, bool))


def encode_prompt(
  tokenizer: Tokenizer,
  question: str,
  template: str = prompts.TEMPLATE,
  *,
  video: bool = True,
) -> np.ndarray:
  """Returns a question up to and including 'ASSISTANT:', `int32[T]`."""
  return np.asarray(
    tokenizer.encode(prompts.ask(question, template, video=video)), np.int32
  )


def pad(
  rows: Sequence[Any], length: int, side: str, value: int | bool = 0
) -> np.ndarray:
  """Returns ragged rows as `[B, length]`, padded on the left or on the right.

  Args:
    value: what they are padded with; PAD where masks are made of ids.
  """
  rows = [np.asarray(row) for row in rows]
  out = np.full((len(rows), length), value, rows[0].dtype if rows else np.int32)
  for index, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'row {index} has {len(row)} tokens, at most {length} fit')
    if side == 'left':
      out[index, length - len(row) :] = row
    else:
      out[index, : len(row)] = row
  return out
