"""Exports in Hugging Face's layout have a token for the picture."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from tests import tiny
from tests.weights import checkpoints, detectors
from tests.weights.damage import refused
from vlm_rlaif_jax.weights import bases, conversion, network_files
from vlm_rlaif_jax.weights.conversion import Request


def export(folder, last: tuple[str, ...], more_rows: int):
  """A base whose table has more rows than its tokenizer has tokens, in the hf layout.

  Returns:
    The folder, and the number of rows.
  """
  vocab = detectors.write_tokenizer(folder / 'tokenizer', last=last)
  rows = len(vocab) + more_rows
  llama = dataclasses.replace(tiny.CFG.llama, vocab=rows)
  cfg = dataclasses.replace(tiny.CFG, llama=llama)
  base = checkpoints.write_base(folder / 'ours', cfg=cfg)
  detectors.write_tokenizer(base, last=last)
  conversion.convert(base, folder / 'hf', Request(to='hf'))
  return folder / 'hf', rows


@pytest.mark.parametrize('more_rows', [0, 3, 64])
def test_the_picture_has_an_id_of_its_own(tmp_path, more_rows):
  folder, rows = export(tmp_path, (), more_rows)
  config = json.loads((folder / 'config.json').read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  image = tokenizer.convert_tokens_to_ids('<image>')
  assert image == config['image_token_index'] == rows
  assert tokenizer.convert_tokens_to_ids('<pad>') == rows + 1
  assert len(tokenizer) == rows + 2 <= config['text_config']['vocab_size']
  assert tokenizer('A<image>B')['input_ids'].count(image) == 1
  assert (
    config['text_config']['eos_token_id']
    == tokenizer.eos_token_id
    == rows - (1 + more_rows)
  )
  plain = checkpoints.read_folder(tmp_path / 'ours')
  again = network_files.read_network(folder)
  assert again.cfg.llama.vocab == rows
  table = again.tensors['model.embed_tokens.weight'].read()
  np.testing.assert_array_equal(table, plain['llama/tokens/w'])


def test_a_picture_that_has_its_token_keeps_it(tmp_path):
  """At the end of the table, as the last added token."""
  vocab = detectors.write_tokenizer(tmp_path / 'with', last=())
  folder = tmp_path / 'ours'
  llama = dataclasses.replace(tiny.CFG.llama, vocab=len(vocab) + 1)
  checkpoints.write_base(folder, cfg=dataclasses.replace(tiny.CFG, llama=llama))
  detectors.write_tokenizer(folder)
  (folder / 'added_tokens.json').write_text(json.dumps({'<image>': len(vocab)}))
  conversion.convert(folder, tmp_path / 'hf', Request(to='hf'))
  config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  assert config['image_token_index'] == len(vocab)
  assert tokenizer.convert_tokens_to_ids('<image>') == len(vocab)


def test_a_picture_among_the_text_is_refused(tmp_path):
  folder = tmp_path / 'ours'
  vocab = detectors.write_tokenizer(folder, last=('<image>', '[SEG]'))
  llama = dataclasses.replace(tiny.CFG.llama, vocab=len(vocab))
  checkpoints.write_base(folder, cfg=dataclasses.replace(tiny.CFG, llama=llama))
  detectors.write_tokenizer(folder, last=('<image>', '[SEG]'))
  refused(folder, 'its tokenizer has <image> as id', request=Request(to='hf'))


@pytest.mark.slow
def test_the_processor_of_the_package_s_base_works(tmp_path):
  """Its tokenizer has 708 tokens, and its table 768 rows."""
  torch = pytest.importorskip('torch')
  del torch
  conversion.convert(bases.TINY, tmp_path / 'hf', Request(to='hf'))
  processor = transformers.AutoProcessor.from_pretrained(tmp_path / 'hf')
  config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  size = config['vision_config']['image_size']
  picture = np.zeros((size, size, 3), np.uint8)
  batch = processor(images=picture, text='USER: <image>\nWhat? ASSISTANT:')
  ids = np.asarray(batch['input_ids'])
  assert (ids == config['image_token_index']).sum() == config['image_seq_length']
