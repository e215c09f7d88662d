"""Compares a tokenizer that lies beside an adapter with that of the network under it.

What saves an adapter often saves the tokenizer of its training, too. Ids and texts are
those of the network's own tokenizer here, so the two have to mean the same.
"""

import pathlib
from typing import Any

from vlm_rlaif_jax.data import tokenizer_files, tokens
from vlm_rlaif_jax.weights import network_files, peft_files
from vlm_rlaif_jax.weights.errors import ConvertError


def check(place: pathlib.Path, base: pathlib.Path, rows: int) -> None:
  """Raises ConvertError for a tokenizer beside an adapter that is not the network's.

  Args:
    place: of the adapter; the folders of its checkpoint above are looked at, too.
    base: of the network, perhaps without a tokenizer.
    rows: of its embedding.
  """
  for own in peft_files.checkpoint_folders(place):
    if not network_files.has_tokenizer(base):
      if network_files.has_tokenizer(own):
        tokens.load_tokenizer(own, rows)  # which compares it with the embedding
    elif difference := _difference(own, tokens.load_tokenizer(base, rows)):
      raise ConvertError(
        f'{own}: its tokenizer is not that of {base}: {difference}; give the network '
        'the tokenizer and the embedding that the adapter was trained with, or remove '
        'these files if they are of another one'
      )


def _difference(own: pathlib.Path, expected: tokens.Tokenizer) -> str:
  """Returns what a folder says otherwise of tokens, of all or only of added ones."""
  if network_files.has_tokenizer(own):
    return tokens.difference(tokens.load_tokenizer(own), expected)
  backend: Any = expected.backend
  added = tokenizer_files.read_added(own, strip=False)
  ids = {token.content: token.id for token in added}
  return tokens.other_ids(ids, backend.get_vocab(), (backend.pad_token,))
