"""Reads a tokenizer from the files of a checkpoint: pieces, added tokens, names.

tokenizer.model           LLaMA's pieces
tokenizer.json            a whole tokenizer, its added tokens among them
added_tokens.json         {token: id} beyond the pieces
tokenizer_config.json     added tokens with their flags; names of BOS, EOS, unknown, pad
special_tokens_map.json   these names, in older folders
generation_config.json    ids that end an answer; else config.json

The ids of added tokens are those of the files. transformers numbers them anew where
there are gaps, and a network knows them by the rows of its table.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.settings.build import UserError

PIECES, WHOLE = 'tokenizer.model', 'tokenizer.json'
_ADDED, _CONFIG = 'added_tokens.json', 'tokenizer_config.json'
_NAMES = 'special_tokens_map.json'
_GENERATION, _NETWORK = 'generation_config.json', 'config.json'
_SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
_PROBES = (  # texts that other kinds of pieces cut in another way
  'Hi  there', ' one', '\n  Yes', 'a\tb', '½ ﬁne é 犬 😀', 'USER: What ?',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token beside the pieces, which no piece crosses.

  Attributes:
    file: that it was found in.
    lstrip, rstrip: whether it swallows spaces before and after it.
    special: whether it is of the template, and not of the text.
  """

  id: int
  content: str
  file: str
  lstrip: bool = False
  rstrip: bool = False
  single_word: bool = False
  normalized: bool = False
  special: bool = False


def read_backend(path: pathlib.Path) -> Any:
  """Returns the tokenizer of a folder as one of Hugging Face.

  Raises:
    UserError: the folder has none, or its files contradict one another.
  """
  if not (path / PIECES).is_file() and not (path / WHOLE).is_file():
    raise UserError(f'{path}: no tokenizer ({WHOLE} or {PIECES})')
  try:
    has_pieces = (path / PIECES).is_file()
    added = read_added(path, strip=has_pieces)
    backend = _of_pieces(path, added) if has_pieces else _of_json(path, added)
  except UserError:
    raise
  except Exception as error:  # of json, sentencepiece, tokenizers: each has its own
    line = (str(error).splitlines() or [repr(error)])[0]
    raise UserError(f'{path}: its tokenizer cannot be read ({line})') from None
  vocab = backend.get_vocab()
  for token in added:
    if vocab.get(token.content) != token.id:
      raise UserError(
        f'{path / token.file}: {token.content!r} is id {token.id}, and id '
        f'{vocab.get(token.content)} in the other files of the tokenizer'
      )
  return backend


def read_added(path: pathlib.Path, *, strip: bool) -> list[AddedToken]:
  """Returns the added tokens of all files of a folder, by id.

  Args:
    strip: whether a token without flags swallows the spaces around it, as in the slow
      tokenizer of transformers 4.31.

  Raises:
    UserError: two files give one id to two tokens, or two ids to one.
  """
  by_id: dict[int, AddedToken] = {}
  by_content: dict[str, AddedToken] = {}
  for token in _added_of_files(path, strip):
    same_id = by_id.setdefault(token.id, token)
    same_content = by_content.setdefault(token.content, token)
    other = same_id if same_id.content != token.content else same_content
    if (other.id, other.content) != (token.id, token.content):
      raise UserError(
        f'{path}: {token.content!r} is id {token.id} in {token.file}, {other.content!r}'
        f' is id {other.id} in {other.file}; one of them is of another tokenizer'
      )
  return sorted(by_id.values(), key=lambda token: token.id)


def _added_of_files(path: pathlib.Path, strip: bool) -> Iterable[AddedToken]:
  """Yields the added tokens of each file; those with flags come first."""
  for id_, entry in (_read(path / _CONFIG).get('added_tokens_decoder') or {}).items():
    yield _added_token({**entry, 'id': int(id_)}, _CONFIG)
  for entry in _read(path / WHOLE).get('added_tokens') or ():
    yield _added_token(entry, WHOLE)
  for content, id_ in _read(path / _ADDED).items():
    yield AddedToken(int(id_), content, _ADDED, lstrip=strip, rstrip=strip)


def _added_token(entry: dict[str, Any], file: str) -> AddedToken:
  fields = {field.name for field in dataclasses.fields(AddedToken)} - {'file'}
  return AddedToken(**{k: v for k, v in entry.items() if k in fields}, file=file)


def read_names(path: pathlib.Path) -> dict[str, str]:
  """Returns the tokens that a folder names as BOS, EOS, unknown and pad."""
  names: dict[str, str] = {}
  for file in (_NAMES, _CONFIG):
    values = _read(path / file)
    for name in _SPECIAL:
      value = values.get(name)
      text = value.get('content') if isinstance(value, dict) else value
      if text:
        names[name] = str(text)
  return names


def check_sides(path: pathlib.Path) -> None:
  """Raises UserError if a network's texts begin or end otherwise than ours do.

  Ours begin with BOS, and only answers end in EOS.
  """
  values = _read(path / _CONFIG)
  # what adds the space before pieces of tokenizer.json is in that file
  spaces = [('add_prefix_space', True)] if (path / PIECES).is_file() else []
  for name, expected in (('add_bos_token', True), ('add_eos_token', False), *spaces):
    if values.get(name) not in (None, expected):
      raise UserError(
        f'{path / _CONFIG}: {name} is {values[name]!r}, expected {expected}: the '
        'network has learned texts that begin or end otherwise; remove the field if '
        'it has not'
      )


def fingerprint(path: pathlib.Path) -> str:
  """Returns the fingerprint of the files of a folder's tokenizer."""
  files = sorted(path.glob('*token*'))
  return hosts.files_fingerprint(file for file in files if file.is_file())


def named_ends(path: pathlib.Path) -> tuple[str, list[int]]:
  """Returns a file that says which ids end an answer, and these ids; '' and []: none.

  As transformers, `generation_config.json` before `config.json`. Neither says anything
  where a library wrote the default of another tokenizer; `end_ids` tells these apart.

  Raises:
    UserError: the field is neither an id nor a list of ids.
  """
  for file in (_GENERATION, _NETWORK):
    values = _read(path / file)
    value = values.get('eos_token_id')
    if value is None and isinstance(values.get('text_config'), dict):
      value = values['text_config'].get('eos_token_id')
    if value is None:
      continue
    ids = value if isinstance(value, list) else [value]
    if any(type(i) is not int for i in ids):
      raise UserError(
        f'{path / file}: eos_token_id is {value!r}, expected an id or a list of ids'
      )
    return file, ids
  return '', []


def end_ids(path: pathlib.Path, backend: Any) -> tuple[int, ...]:
  """Returns the ids that end an answer, as the files of a network name them.

  Raises:
    UserError: `generation_config.json` names an id of the text, or none that there is.
  """
  file, ids = named_ends(path)
  special = {*backend.all_special_ids, *backend.get_added_vocab().values()}
  wrong = [i for i in ids if i not in special]
  # transformers writes its default, 2, whatever the tokenizer is
  is_default = file == _NETWORK or _read(path / file).get('_from_model_config')
  if wrong and not is_default:
    text = backend.convert_ids_to_tokens(wrong[0]) if wrong[0] >= 0 else None
    raise UserError(
      f'{path / file}: eos_token_id has {wrong[0]}, '
      + (f'which is {text!r} of the text' if text else 'which no token is')
      + '; an answer can only end in a special or added token of the tokenizer'
    )
  return tuple(i for i in dict.fromkeys(ids) if i in special)


def _read(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({error})') from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: contains a {type(value).__name__}, expected a dict')
  return value


# ---------------------------------------------------------------- tokenizer.json


def _of_json(path: pathlib.Path, added: list[AddedToken]) -> Any:
  """Returns a whole tokenizer; tokens that only other files have are added to it."""
  import tokenizers
  import transformers

  whole = _read(path / WHOLE)
  own = {entry['content'] for entry in whole.get('added_tokens') or ()}
  more = [token for token in added if token.content not in own]
  if not more:
    return transformers.PreTrainedTokenizerFast.from_pretrained(
      path, local_files_only=True
    )
  _number(whole['model'].setdefault('vocab', {}), more)
  model = tokenizers.Tokenizer.from_str(json.dumps(whole))
  _add(model, more)
  settings = _read(path / _CONFIG)
  options = {k: settings[k] for k in ('clean_up_tokenization_spaces',) if k in settings}
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, **read_names(path), **options
  )


def _number(vocab: dict[str, int], added: Iterable[AddedToken]) -> None:
  """Gives added tokens their ids in the vocabulary of a model, gaps and all."""
  for token in added:
    vocab.setdefault(token.content, token.id)


def _add(model: Any, added: Iterable[AddedToken]) -> None:
  """Makes tokens of a vocabulary such that no piece crosses."""
  import tokenizers

  for token in added:
    flags = dataclasses.asdict(token)
    flags = {k: v for k, v in flags.items() if k not in ('id', 'content', 'file')}
    entry = tokenizers.AddedToken(token.content, **flags)
    (model.add_special_tokens if token.special else model.add_tokens)([entry])


# ---------------------------------------------------------------- tokenizer.model


def _of_pieces(path: pathlib.Path, added: list[AddedToken]) -> Any:
  """Returns LLaMA's sentencepiece model as a Hugging Face tokenizer.

  Sentencepiece joins the pair whose piece has the highest score; a list of merges in
  that order does the same. Pieces of spaces have the lowest scores and high ids.
  """
  import sentencepiece
  import tokenizers
  import transformers
  from tokenizers import models, normalizers, processors

  file = path / PIECES
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
  ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
  _check_same_pieces(path, ids, {token.content for token in added})
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
  vocab = dict(ids)
  _number(vocab, added)
  model = tokenizers.Tokenizer(
    models.BPE(
      vocab,
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
  for text in _PROBES:
    if model.encode(text, add_special_tokens=False).ids != pieces.encode(text):
      raise UserError(
        f'{file}: cuts {text!r} in another way than the pieces of LLaMA; give '
        f'{WHOLE} in its place'
      )
  _add(model, (dataclasses.replace(token, normalized=False) for token in added))
  names = {
    'bos_token': bos,
    'eos_token': pieces.id_to_piece(pieces.eos_id()),
    'unk_token': pieces.id_to_piece(pieces.unk_id()),
  } | {name: text for name, text in read_names(path).items() if text in vocab}
  return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names)


def _check_same_pieces(
  path: pathlib.Path, ids: dict[str, int], added: set[str]
) -> None:
  """Raises UserError if tokenizer.json beside the pieces numbers them otherwise."""
  vocab = (_read(path / WHOLE).get('model') or {}).get('vocab')
  if not isinstance(vocab, dict):
    return
  other = {text: i for text, i in vocab.items() if text not in added}
  own = {text: i for text, i in ids.items() if text not in added}
  if other != own:
    raise UserError(
      f'{path}: {PIECES} and {WHOLE} are two tokenizers ({len(own)} and {len(other)} '
      'pieces); remove the one that is not of this network'
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
