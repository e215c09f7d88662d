"""From text to token ids with one video slot, label masks and padding.

Semantics are those of transformers 4.31 with the slow LLaMA tokenizer, whatever version
is installed: text after an inline </s> is tokenised on its own, with its own leading
space piece (later versions drop the piece, and then multi-turn labels are lost).

    A chat ... USER: <image>\\nWhat? ASSISTANT: A dog.</s>
    1 319 ... 29871 -200 29871 13 5618 29973 319 ... 29901 319 11203 29889 2
    labels:                                             0  1   1     1     1
"""

import dataclasses
import functools
import pathlib

import numpy as np

from vlm_rlaif_jax.config.build import UserError
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.prompts import EOS, VIDEO_MARK

VIDEO = -200  # the id that stands for the visual tokens
PAD = 0  # also the id of <unk>, as in the reference


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A Hugging Face tokenizer reduced to what the stages need."""

  backend: object
  bos: int
  eos: int

  @property
  def vocab(self) -> int:
    return len(self.backend)  # type: ignore[arg-type]

  @functools.lru_cache(maxsize=65536)  # noqa: B019 - one tokenizer lives as long as a run
  def pieces(self, text: str) -> tuple[int, ...]:
    """Ids of a text without BOS; each inline </s> is one id and starts afresh."""
    ids: list[int] = []
    parts = text.split(EOS)
    for index, part in enumerate(parts):
      if part:
        ids += self.backend(part, add_special_tokens=False)['input_ids']  # type: ignore
      if index < len(parts) - 1:
        ids.append(self.eos)
    return tuple(ids)

  def encode(self, text: str) -> list[int]:
    """Ids with BOS; the video mark, if there is one, becomes VIDEO.

    The two sides of the mark are tokenised apart, each with its leading space piece.
    """
    chunks = text.split(VIDEO_MARK)
    if len(chunks) > 2:
      raise ValueError(f'{len(chunks) - 1} video marks in one text, at most 1 expected')
    ids = [self.bos, *self.pieces(chunks[0])]
    for chunk in chunks[1:]:
      ids += [VIDEO, *self.pieces(chunk)]
    return ids

  def decode(self, ids) -> str:
    """Text of an answer: cut at the first end of sequence, specials dropped."""
    ids = [int(i) for i in ids]
    if self.eos in ids:
      ids = ids[: ids.index(self.eos)]
    keep = [i for i in ids if i not in (PAD, self.bos, VIDEO)]
    return self.backend.decode(keep).strip()  # type: ignore[attr-defined]

  def option(self, text: str) -> int:
    """The id of a one-piece answer such as 'Yes' or 'A'."""
    ids = self.pieces(text)
    ids = ids[1:] if len(ids) == 2 and self.backend.decode(ids[:1]) == '' else ids  # type: ignore
    if len(ids) != 1:
      raise ValueError(f'option {text!r}: must be one token, is {len(ids)}')
    return ids[0]


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Any folder with a Hugging Face tokenizer: tokenizer.json, or tokenizer.model.

  A sentencepiece file is taken as LLaMA's, with BOS, whether tokenizer_config.json says
  so or is absent. Later transformers guess another kind, or leave BOS out.
  """
  import transformers

  path = pathlib.Path(path)
  fast, slow = ((path / f'tokenizer.{kind}').is_file() for kind in ('json', 'model'))
  if not fast and not slow:
    raise UserError(f'{path}: no tokenizer (tokenizer.json or tokenizer.model)')
  try:
    if fast:
      backend = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    else:
      backend = transformers.LlamaTokenizer.from_pretrained(
        path, local_files_only=True, add_bos_token=True
      )
  except Exception as error:  # of json, sentencepiece, tokenizers: each has its own
    line = (str(error).splitlines() or [repr(error)])[0]
    raise UserError(f'{path}: its tokenizer cannot be read ({line})') from None
  return Tokenizer(backend, backend.bos_token_id, backend.eos_token_id)


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A tokenised conversation; `target[i]`: whether token i is to be predicted."""

  ids: np.ndarray  # int32[T]
  target: np.ndarray  # bool[T]


def encode_conversation(
  tokenizer: Tokenizer, turns: prompts.Turns, *, video: bool = True
) -> Encoded:
  """Rounds of question and answer; the answers and their </s> are the targets."""
  ids: list[int] = []
  target: list[bool] = []
  text = prompts.render(turns, video=video)
  for index, round_text in enumerate(text.split(EOS)[:-1]):
    head, _, answer = round_text.partition(' ASSISTANT: ')
    prefix = tokenizer.encode(f'{head} ASSISTANT:')[index > 0 :]  # BOS comes once
    whole = [*tokenizer.encode(round_text)[index > 0 :], tokenizer.eos]
    if whole[: len(prefix)] != prefix or 'ASSISTANT: ' in answer:
      raise ValueError(f'cannot tell question from answer in {round_text!r}')
    ids += whole
    target += [False] * len(prefix) + [True] * (len(whole) - len(prefix))
  return Encoded(np.asarray(ids, np.int32), np.asarray(target, bool))


def encode_prompt(
  tokenizer: Tokenizer,
  question: str,
  template: str = prompts.TEMPLATE,
  *,
  video: bool = True,
) -> np.ndarray:
  """A question up to and including 'ASSISTANT:', `int32[T]`."""
  return np.asarray(
    tokenizer.encode(prompts.ask(question, template, video=video)), np.int32
  )


def pad(rows, length: int, side: str, value=PAD) -> np.ndarray:
  """Ragged rows -> `[B, length]`, padded on the left or on the right."""
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
