"""A folder that was saved twice: first in shards with an index, then as one file.

The index and the shards of the first time are still there. transformers loads
model.safetensors, which is newer, and so must everybody else.

  python -m tests.cases.weights_stale_index OUT
"""

import pathlib
import shutil

import numpy as np

from tests.cases import checkpoints, commands

WEIGHT = 'lm_head.weight'
TOKENIZER = checkpoints.byte_tokenizer()


def make(out: pathlib.Path) -> pathlib.Path:
  old, new = (checkpoints.random_network(len(TOKENIZER), seed) for seed in (1, 2))
  folder = checkpoints.save(old, out / 'saved_twice', TOKENIZER, shard='100KB')
  checkpoints.save(new, out / 'new', TOKENIZER)
  shutil.copy(out / 'new' / 'model.safetensors', folder)
  assert (folder / 'model.safetensors.index.json').is_file()
  return folder


def check(out: pathlib.Path) -> str:
  folder = make(out)
  result = commands.convert_twice(folder, out, '--to=hf')
  if result.returncode:
    return commands.refused_naming(result, {'the index': r'index\.json'})
  rows = slice(len(TOKENIZER))
  weight = checkpoints.tensor_of(out / 'export', WEIGHT)[rows]
  if np.array_equal(weight, checkpoints.tensor_of(folder, WEIGHT)[rows]):
    return ''
  return 'the old weights were read; right: those of model.safetensors'


def cases(out: pathlib.Path) -> dict:
  return {'one_file_beside_index': lambda: check(out)}


if __name__ == '__main__':
  commands.main(cases)
