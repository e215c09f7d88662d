"""Networks whose answer shows which tokens reached them, and tokenizers for them."""

import dataclasses
import json
import pathlib

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import tiny
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.weights import bases, weight_table

BEGIN, END = '<|begin|>', '<|end|>'


def write_tokenizer(
  folder: pathlib.Path, first: tuple[str, ...] = (), last: tuple[str, ...] = ()
) -> dict[str, int]:
  """Writes a tokenizer of one token a byte; returns its vocabulary.

  Args:
    first: those with the lowest ids; last: those with the highest, before BOS and EOS.
  """
  folder.mkdir(parents=True, exist_ok=True)
  letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(first))
  texts = [*first, *letters, *last, BEGIN, END]
  vocab = {text: i for i, text in enumerate(texts)}
  model = Tokenizer(models.BPE(vocab, []))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  model.add_special_tokens([*last, BEGIN, END])
  model.save(str(folder / 'tokenizer.json'))
  config = {'bos_token': BEGIN, 'eos_token': END}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return vocab


def write_detector(
  folder: pathlib.Path, vocab: dict[str, int], trigger: str, yes: str, no: str = 'N'
) -> pathlib.Path:
  """Writes a base that answers `yes` if `trigger` is in the question, else `no`.

  Components of the hidden state: 0 is 1 everywhere, and read as `no`; 1 is 1 at the
  trigger; 2 is the mean of 1 over all positions, and read as `yes`; 3 is 1 at both
  answers, and read as the end.
  """
  llama = dataclasses.replace(tiny.CFG.llama, vocab=len(vocab), max_positions=640)
  cfg = dataclasses.replace(tiny.CFG, llama=llama)
  rng = np.random.default_rng(0)
  flat = {}
  for weight in weight_table.weights(cfg):
    if weight.part == 'tower':
      flat[weight.name] = 0.1 * rng.normal(size=weight.full_shape).astype(np.float32)
    elif weight.part != 'text':
      is_norm = weight.name.endswith('scale')
      flat[weight.name] = np.full(weight.full_shape, float(is_norm), np.float32)
  table, head = flat['llama/tokens/w'], flat['llama/head/w']
  table[:, 0], table[vocab[trigger], 1] = 1, 1
  table[[vocab[yes], vocab[no]], 3] = 1
  flat['llama/layers/v/w'][0, 0, 1], flat['llama/layers/o/w'][0, 2, 0] = 1, 200
  head[vocab[no], 0], head[vocab[yes], 2], head[vocab[END], 3] = 1, 1, 1000
  bases.save(folder, trees.unflatten(flat), cfg)
  return folder
