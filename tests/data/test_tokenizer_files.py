"""Tokenizers of several files: added tokens, ids, and what has no row in a table."""

import json
import shutil

import numpy as np
import pytest

from tests.weights import detectors
from vlm_rlaif_jax.data import readers, tokens
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.weights import bases


def test_id_zero_is_a_token_like_others(tmp_path):
  """Register B36: padding is an id that no tokenizer has."""
  vocab = detectors.write_tokenizer(tmp_path, ('!',))
  tokenizer = tokens.load_tokenizer(tmp_path)
  assert vocab['!'] == 0 and tokenizer.unk == PAD
  ids = tokenizer.pieces('Stop!')
  assert ids[-1] == 0
  assert tokenizer.decode([*ids, PAD, tokenizer.eos]) == 'Stop!'
  batch = readers.collate_prompts([np.asarray(ids), np.asarray(ids[:3])], 6)
  np.testing.assert_array_equal(batch['ids'] != PAD, batch['valid'])
  assert batch['valid'].sum(1).tolist() == [5, 3]
  encoded = tokens.Encoded(np.asarray(ids, np.int32), np.ones(5, bool))
  sample = readers.Sample(None, encoded, 0, 6)
  np.testing.assert_array_equal(readers.collate([sample], 6)['ids'], [[*ids, PAD]])
  assert min(tokenizer.backend.get_vocab().values()) > PAD


ADDED = {'[SEG]': 7, '<vid>': 9}  # beyond the pieces, with a gap


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  """A sentencepiece model such as LLaMA's, of few words."""
  import sentencepiece

  folder = tmp_path_factory.mktemp('pieces')
  texts = ['what happens in the video', 'segment the cup please USER ASSISTANT : . ?']
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts * 40), model_prefix=str(folder / 'tokenizer'),
    model_type='bpe', vocab_size=320, hard_vocab_limit=False, unk_id=0, bos_id=1,
    eos_id=2, pad_id=-1, byte_fallback=True, character_coverage=1.0,
    normalization_rule_name='identity', remove_extra_whitespaces=False, minloglevel=2,
  )  # fmt: skip
  return folder / 'tokenizer.model'


def with_added(folder, source, file, first):
  """A folder with a tokenizer and two tokens that one file adds to it."""
  shutil.copy(source, folder)
  added = {text: first + i for text, i in ADDED.items()}
  if file == 'added_tokens.json':
    value = added
  else:
    flags = dict.fromkeys(('lstrip', 'rstrip', 'single_word', 'normalized'), False)
    entries = {str(i): {'content': text, **flags} for text, i in added.items()}
    value = {'added_tokens_decoder': entries}
  if file == 'tokenizer_config.json' and (path := source.with_name(file)).is_file():
    value |= json.loads(path.read_text())
  (folder / file).write_text(json.dumps(value))
  return added


@pytest.mark.parametrize('file', ['added_tokens.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('kind', ['pieces', 'json'])
def test_added_tokens_of_every_file(pieces, tmp_path, kind, file):
  """With the ids of the file: transformers numbers them anew behind a gap."""
  source = pieces if kind == 'pieces' else bases.TINY / 'tokenizer.json'
  first = 400 if kind == 'pieces' else 708
  added = with_added(tmp_path, source, file, first)
  tokenizer = tokens.load_tokenizer(tmp_path)
  ids = tokenizer.pieces('what [SEG] the <vid>')
  assert [i for i in ids if i >= first] == list(added.values())
  assert tokenizer.decode([added['[SEG]']]) == '[SEG]'
  assert tokenizer.vocab == added['<vid>'] + 1
  assert (tokenizer.bos, tokenizer.eos, tokenizer.unk) == (1, 2, 0)
  spaces = tokenizer.pieces('the  [SEG]  the')
  bare = tokenizer.pieces('the[SEG]the')
  # 4.31's slow tokenizer swallows the spaces around tokens without flags
  assert (spaces == bare) == ((kind, file) == ('pieces', 'added_tokens.json'))
  fits = tokens.load_tokenizer(tmp_path, first + 10)
  assert fits.pieces('what') == tokenizer.pieces('what')
  with pytest.raises(UserError, match=r"1 tokens without a row .*'<vid>'"):
    tokens.load_tokenizer(tmp_path, first + 9)


def test_the_end_may_be_an_added_token(pieces, tmp_path):
  added = with_added(tmp_path, pieces, 'added_tokens.json', 400)
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "[SEG]"}')
  assert tokens.load_tokenizer(tmp_path).eos == added['[SEG]']


def test_a_token_that_may_lack_a_row_is_refused_in_a_text(pieces, tmp_path):
  """<pad> beyond the table, as many fine-tunes of LLaMA have it."""
  shutil.copy(pieces, tmp_path)
  rows = tokens.load_tokenizer(tmp_path).vocab
  (tmp_path / 'added_tokens.json').write_text(json.dumps({'<pad>': rows}))
  tokenizer = tokens.load_tokenizer(tmp_path, rows)
  assert tokenizer.pieces('what') == tokens.load_tokenizer(tmp_path).pieces('what')
  with pytest.raises(ValueError, match=f"'<pad>' in a text is token {rows}, the embed"):
    tokenizer.encode('what <pad>')


def test_files_of_two_tokenizers_are_refused(pieces, tmp_path):
  with_added(tmp_path, pieces, 'added_tokens.json', 400)
  entry = {'407': {'content': '[OTHER]'}}
  config = tmp_path / 'tokenizer_config.json'
  config.write_text(json.dumps({'added_tokens_decoder': entry}))
  with pytest.raises(
    UserError, match=r"'\[SEG\]' is id 407 in added_tokens.json, '\[OT"
  ):
    tokens.load_tokenizer(tmp_path)
  config.unlink()
  shutil.copy(bases.TINY / 'tokenizer.json', tmp_path)
  with pytest.raises(UserError, match=r'tokenizer.model and tokenizer.json are two'):
    tokens.load_tokenizer(tmp_path)


def test_pieces_of_another_kind_are_refused(tmp_path):
  """Unigrams are not joined by scores of pairs."""
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['what happens in the video'] * 40), vocab_size=300,
    model_prefix=str(tmp_path / 'tokenizer'), model_type='unigram', minloglevel=2,
    hard_vocab_limit=False, byte_fallback=True,
  )  # fmt: skip
  with pytest.raises(UserError, match='in another way than the pieces of LLaMA'):
    tokens.load_tokenizer(tmp_path)


def with_ends(folder, **files):
  """A tokenizer with two special tokens, and ids that end an answer."""
  vocab = detectors.write_tokenizer(folder, ('#',), ('<|eot|>', '<|eom|>'))
  for name, value in files.items():
    text = json.dumps(value(vocab) if callable(value) else value)
    (folder / f'{name}.json').write_text(text)
  return vocab


def test_an_answer_ends_in_any_end_that_the_files_name(tmp_path):
  """Llama 3 and Qwen name several; generation_config.json comes first."""
  vocab = with_ends(
    tmp_path,
    generation_config=lambda v: {'eos_token_id': [v[detectors.END], v['<|eot|>']]},
    config=lambda v: {'eos_token_id': v['<|eom|>']},
  )
  tokenizer = tokens.load_tokenizer(tmp_path)
  assert tokenizer.ends == (vocab[detectors.END], vocab['<|eot|>'])
  ids = [*tokenizer.pieces('Yes.'), vocab['<|eot|>'], *tokenizer.pieces('No.')]
  assert tokenizer.decode(ids) == 'Yes.'
  (tmp_path / 'generation_config.json').write_text('{"temperature": 1.0}')
  assert tokens.load_tokenizer(tmp_path).other_ends == (vocab['<|eom|>'],)
  text = {'text_config': {'eos_token_id': [vocab['<|eot|>']]}}
  (tmp_path / 'config.json').write_text(json.dumps(text))
  assert tokens.load_tokenizer(tmp_path).other_ends == (vocab['<|eot|>'],)


def test_ends_that_are_text_are_defaults_of_a_library_or_refused(tmp_path):
  """transformers writes 2 where nothing is said, and 2 may be a letter."""
  with_ends(tmp_path, config={'eos_token_id': 2})
  assert not tokens.load_tokenizer(tmp_path).other_ends
  with_ends(tmp_path, generation_config={'eos_token_id': 2, '_from_model_config': True})
  assert not tokens.load_tokenizer(tmp_path).other_ends
  for value, message in (
    ([0], "eos_token_id has 0, which is '#' of the text"),
    (9999, 'eos_token_id has 9999, which no token is'),
    (['</s>'], r"eos_token_id is \['</s>'\], expected an id or a list of ids"),
    (True, 'eos_token_id is True, expected an id'),
  ):
    with_ends(tmp_path, generation_config={'eos_token_id': value})
    with pytest.raises(UserError, match=f'generation_config.json: {message}'):
      tokens.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ('name', 'value'), [('add_bos_token', False), ('add_eos_token', True)]
)
def test_texts_that_begin_or_end_otherwise_are_refused(tmp_path, name, value):
  detectors.write_tokenizer(tmp_path)
  path = tmp_path / 'tokenizer_config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, name: value}))
  with pytest.raises(UserError, match=f'tokenizer_config.json: {name} is {value}, exp'):
    tokens.load_tokenizer(tmp_path)
  for usual in (not value, None):
    path.write_text(json.dumps({**config, name: usual}))
    tokens.load_tokenizer(tmp_path)


def test_pieces_without_a_space_before_them_are_refused(pieces, tmp_path):
  """transformers would cut 'what' as 'what' and not as '▁what'."""
  shutil.copy(pieces, tmp_path)
  path = tmp_path / 'tokenizer_config.json'
  path.write_text('{"add_prefix_space": false}')
  with pytest.raises(UserError, match='add_prefix_space is False, expected True'):
    tokens.load_tokenizer(tmp_path)
  for usual in ('true', 'null'):
    path.write_text(f'{{"add_prefix_space": {usual}}}')
    assert tokens.load_tokenizer(tmp_path).pieces('what')
