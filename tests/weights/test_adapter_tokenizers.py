"""A tokenizer beside an adapter has to be that of the network under it."""

import json
import shutil

import pytest

from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import edit_json, on, refused
from vlm_rlaif_jax.weights import peft_stages, readers

ROWS = tiny.CFG.llama.vocab
TOKENIZER = ('tokenizer.json', 'tokenizer_config.json')


def give(root, folder):
  """Puts the tokenizer of the network into the folder of an adapter."""
  for name in TOKENIZER:
    shutil.copy(root / 'ours' / name, folder)
  return folder / 'tokenizer.json'


def swap(whole):
  """Exchanges the ids of the last two tokens."""
  vocab = whole['model']['vocab']
  last = sorted(vocab, key=vocab.get)[-2:]
  ids = {last[0]: vocab[last[1]], last[1]: vocab[last[0]]}
  vocab |= ids
  for entry in whole['added_tokens']:
    entry['id'] = ids.get(entry['content'], entry['id'])
  return whole


def added(text, **flags):
  """Returns what adds a token behind the text, as training scripts do."""
  entry = {'id': ROWS, 'content': text, 'single_word': False, 'lstrip': False}
  entry |= {'rstrip': False, 'normalized': False, 'special': True, **flags}
  return lambda whole: {**whole, 'added_tokens': [*whole['added_tokens'], entry]}


@pytest.mark.parametrize('change', [lambda t: t, added('<pad>'), added('<image>')])
def test_what_means_the_same_is_read(root, adapter, change):
  edit_json(give(root, adapter), change)
  peft_stages.import_adapter(adapter, root / 'ours', '', '', '')
  readers.load_checkpoint(adapter, base=str(root / 'llava'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (added('[SEG]'), f"'[SEG]' is {ROWS} and not there"),
    (swap, ' and not '),
  ],
)
@pytest.mark.parametrize('merge', [False, True])
def test_another_tokenizer_is_refused(root, adapter, change, message, merge):
  edit_json(give(root, adapter), change)
  request = on(root)
  request = type(request)(base=request.base, merge=merge, to='ours')
  refused(adapter, f'{adapter}: its tokenizer is not that of', message, request=request)


def test_another_end_is_refused(root, adapter):
  give(root, adapter)
  path = adapter / 'tokenizer_config.json'
  edit_json(path, lambda c: {**c, 'eos_token': '<unk>'})
  refused(adapter, 'EOS is 0 and not 2', request=on(root))


def test_added_tokens_alone_are_compared(root, adapter):
  path = adapter / 'added_tokens.json'
  path.write_text(json.dumps({'<pad>': ROWS}))
  peft_stages.import_adapter(adapter, root / 'ours', '', '', '')
  path.write_text(json.dumps({'<pad>': ROWS, '[SEG]': ROWS + 1}))
  refused(adapter, f"'[SEG]' is {ROWS + 1} and not there", request=on(root))


def test_the_tokenizer_of_a_checkpoint_lies_above_its_adapters(root, tmp_path):
  folder = tmp_path / 'checkpoint'
  for role in ('policy', 'value'):
    checkpoints.write_adapter(folder / 'adapter_model' / f'lora_{role}')
  edit_json(give(root, folder), added('[SEG]'))
  refused(folder, f'{folder}: its tokenizer is not that of', request=on(root))
  refused(folder / 'adapter_model', "'[SEG]'", request=on(root))


def test_of_a_network_without_a_tokenizer_the_table_is_compared(root, adapter):
  base = shutil.copytree(root / 'ours', adapter.parent / 'base')
  for name in TOKENIZER:
    (base / name).unlink()
  path = give(root, adapter)
  peft_stages.import_adapter(adapter, base, '', '', '')
  edit_json(path, added('[SEG]'))
  request = type(on(root))(base=str(base))
  refused(adapter, 'without a row in the embedding', request=request)
