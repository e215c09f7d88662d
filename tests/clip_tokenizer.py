"""A small tokenizer of CLIP's kind: bytes, a few merges, its two special tokens."""

import json
import pathlib
from typing import Any

MERGES = (('t', 'h'), ('th', 'e</w>'), ('a', 'n</w>'), ('r', 'u'), ('ru', 'n'))


def write(folder: pathlib.Path) -> Any:
  """Writes `vocab.json` and `merges.txt`; returns what transformers makes of them."""
  import transformers

  letters = [chr(code) for code in (*range(33, 127), *range(161, 173))]
  pieces = [*letters, *(f'{letter}</w>' for letter in letters)]
  pieces += [''.join(pair) for pair in MERGES]
  pieces += ['<|startoftext|>', '<|endoftext|>']
  vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  lines = ['#version: 0.2', *(' '.join(pair) for pair in MERGES)]
  (folder / 'merges.txt').write_text('\n'.join(lines) + '\n')
  return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
