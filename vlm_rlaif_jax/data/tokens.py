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
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.prompts import EOS, VIDEO_MARK
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD, VIDEO

BOS = '<s>'


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A Hugging Face tokenizer reduced to what the stages need."""

  backend: object
  bos: int
  eos: int

  @property
  def vocab(self) -> int:
    """Returns the number of its ids."""
    return len(self.backend)  # type: ignore[arg-type]

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
    """Returns the text of an answer, cut at the first end of sequence."""
    ids = [int(i) for i in ids]
    if self.eos in ids:
      ids = ids[: ids.index(self.eos)]
    keep = [i for i in ids if i not in (PAD, self.bos, VIDEO)]
    return self.backend.decode(keep).strip()  # type: ignore[attr-defined]

  def option(self, text: str) -> int:
    """Returns the id of a one-piece answer such as 'Yes' or 'A'."""
    ids = self.pieces(text)
    ids = ids[1:] if len(ids) == 2 and self.backend.decode(ids[:1]) == '' else ids  # type: ignore
    if len(ids) != 1:
      raise ValueError(f'option {text!r}: must be one token, is {len(ids)}')
    return ids[0]


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Reads the tokenizer of a folder: LLaMA's tokenizer.model, or tokenizer.json.

  Both are read as they are. What transformers makes of them by the class that
  tokenizer_config.json names depends on its version: 5.23 merges the pieces of
  tokenizer.model in another order ('a  b'), and drops spaces at the beginning.
  """
  import transformers

  path = pathlib.Path(path)
  piece_file, fast_file = path / 'tokenizer.model', path / 'tokenizer.json'
  if not piece_file.is_file() and not fast_file.is_file():
    raise UserError(f'{path}: no tokenizer (tokenizer.json or tokenizer.model)')
  try:
    if piece_file.is_file():
      backend = _of_sentencepiece(piece_file)
    else:
      backend = transformers.PreTrainedTokenizerFast.from_pretrained(
        path, local_files_only=True
      )
  except Exception as error:  # of json, sentencepiece, tokenizers: each has its own
    line = (str(error).splitlines() or [repr(error)])[0]
    raise UserError(f'{path}: its tokenizer cannot be read ({line})') from None
  vocab = backend.get_vocab()
  bos, eos = (
    vocab.get(str(named or usual))
    for named, usual in ((backend.bos_token, BOS), (backend.eos_token, EOS))
  )
  if bos is None or eos is None:
    raise UserError(
      f'{path}: its tokenizer has no {"BOS" if bos is None else "EOS"}; '
      f'tokenizer_config.json names it, or it is {BOS if bos is None else EOS!r}'
    )
  return Tokenizer(backend, bos, eos)


def _of_sentencepiece(file: pathlib.Path) -> Any:
  """Returns LLaMA's sentencepiece model as a Hugging Face tokenizer.

  Sentencepiece joins the pair whose piece has the highest score; a list of merges in
  that order does the same. Pieces of spaces have the lowest scores and high ids.
  """
  import sentencepiece
  import tokenizers
  import transformers
  from tokenizers import models, normalizers, processors

  pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
  ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
  joined = [
    piece
    for piece, i in ids.items()
    if not (pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i))
  ]
  merges = [
    (-pieces.get_score(ids[piece]), ids[piece], ids[left], ids[right], left, right)
    for piece in joined
    for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    if left in ids and right in ids
  ]
  model = tokenizers.Tokenizer(
    models.BPE(
      ids,
      [(left, right) for *_, left, right in sorted(merges)],
      unk_token=pieces.id_to_piece(pieces.unk_id()),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  model.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  model.decoder = piece_decoder()
  bos = pieces.id_to_piece(pieces.bos_id())
  model.post_processor = processors.TemplateProcessing(
    single=f'{bos} $A', special_tokens=[(bos, pieces.bos_id())]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    bos_token=bos,
    eos_token=pieces.id_to_piece(pieces.eos_id()),
    unk_token=pieces.id_to_piece(pieces.unk_id()),
  )


def piece_decoder() -> Any:
  """Returns what turns LLaMA's pieces into text: '▁' is a space, the first dropped."""
  from tokenizers import decoders

  return decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )


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
  rows: Sequence[Any], length: int, side: str, value: int | bool = PAD
) -> np.ndarray:
  """Returns ragged rows as `[B, length]`, padded on the left or on the right."""
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
