"""Golden ids of the reference with a Llama-2 tokenizer where one is given, and the
same properties with the tiny one everywhere."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tests.weights import detectors
from vlm_rlaif_jax.data import pairs, prompts, readers, tokens
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases

DATA = DataConfig()
LLAMA = os.environ.get('VLM_RLAIF_LLAMA_TOKENIZER', '')


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  if not pathlib.Path(LLAMA).is_file():
    pytest.skip('VLM_RLAIF_LLAMA_TOKENIZER does not name a sentencepiece file')
  folder = tmp_path_factory.mktemp('llama')
  shutil.copy(LLAMA, folder / 'tokenizer.model')
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(
      {
        'tokenizer_class': 'LlamaTokenizer',
        'bos_token': '<s>',
        'eos_token': '</s>',
        'unk_token': '<unk>',
        'legacy': False,
      }
    )
  )
  return tokens.load_tokenizer(folder)


@pytest.fixture(scope='module')
def tiny():
  return tokens.load_tokenizer(bases.TINY)


@pytest.fixture(params=['tiny', 'llama'])
def tokenizer(request):
  return request.getfixturevalue(request.param)


def test_system_text():
  import hashlib

  assert hashlib.sha256(prompts.SYSTEM.encode()).hexdigest() == (
    '1fa69e2371b762d1882b0bd98d284f312a36c27add732016e12e52586f98a9f5'
  )


def test_golden_prompt(llama):
  prefix = llama.encode(f'{prompts.SYSTEM} USER: ')
  assert len(prefix) == 35
  assert prefix[:4] == [1, 319, 13563, 1546]
  assert prefix[-4:] == [3148, 1001, 29901, 29871]
  ids = tokens.encode_prompt(llama, 'What?').tolist()
  assert ids[:35] == prefix
  assert ids[35:38] == [VIDEO, 29871, 13]
  assert ids[-5:] == [319, 1799, 9047, 13566, 29901]
  assert len(ids) == 43 + len(llama.pieces('What?'))


def test_the_template_of_the_references_evaluation():
  text = prompts.ask('What?\n<image>', 'llava_v0')
  assert text.startswith('A chat between a curious human and an artificial')
  assert text.endswith('questions.###Human: <image>\nWhat?###Assistant:')
  assert prompts.answer_of('A dog. ###Human: And', 'llava_v0') == 'A dog.'
  assert prompts.ask('What?') == prompts.render((('What?', None),))
  assert prompts.answer_of('A ### B') == 'A ### B'


TEXTS = (
  'Hi  there', '  two', ' one', 'a   b', '\n  Yes', ' "Why?"\n', 'naïve 犬 😀', 'a\tb',
  'USER: What ?', prompts.SYSTEM, 'The end. ', '...   ', '1 000,5 ▁ _',
)  # fmt: skip


def test_pieces_are_sentencepieces(llama):
  """The slow tokenizer of transformers 4.31 is sentencepiece itself."""
  known = pytest.importorskip('sentencepiece').SentencePieceProcessor(model_file=LLAMA)
  rng = np.random.default_rng(0)
  letters = list('ab cde  \n\t.,?é😀 犬▁AThe')
  drawn = [''.join(rng.choice(letters, 12)) for _ in range(300)]
  for text in (*TEXTS, *drawn):
    assert list(llama.pieces(text)) == known.encode(text), repr(text)
    assert llama.backend.decode(known.encode(text)) == known.decode(known.encode(text))
  assert llama.pieces('Hi  there') == (6324, 29871, 727)


@pytest.mark.parametrize('kind', ['bare model', 'json', 'json of a LlamaTokenizer'])
def test_every_folder_of_llamas_tokenizer_gives_the_same_ids(llama, tmp_path, kind):
  if kind == 'bare model':
    shutil.copy(LLAMA, tmp_path / 'tokenizer.model')
  else:
    llama.backend.backend_tokenizer.save(str(tmp_path / 'tokenizer.json'))
  if kind == 'json of a LlamaTokenizer':
    (tmp_path / 'tokenizer_config.json').write_text(
      json.dumps({'tokenizer_class': 'LlamaTokenizer', 'legacy': False})
    )
  other = tokens.load_tokenizer(tmp_path)
  assert (other.bos, other.eos, other.vocab) == (1, 2, 32000)
  for text in (*TEXTS, 'A dog.</s>USER: What ?'):
    assert other.pieces(text) == llama.pieces(text), repr(text)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
  file = tmp_path / 'tokenizer.json'
  shutil.copy(bases.TINY / 'tokenizer.json', file)
  assert tokens.load_tokenizer(tmp_path).eos == 2  # by its usual name
  file.write_text(file.read_text().replace('</s>', '<end>'))
  with pytest.raises(UserError, match=r'has no EOS; tokenizer_config.json names it'):
    tokens.load_tokenizer(tmp_path)


def test_the_reward_prompt_keeps_its_leading_space(llama):
  """Register B32: a piece of its own in 4.31; later versions drop it."""
  suffix = pairs.prompt_ids(llama, RewardPrompt(prompt='reward'))
  assert suffix[0] == 29871


@pytest.mark.parametrize('name', ['', 'tokenizer.model', 'tokenizer.json'])
def test_a_folder_without_a_tokenizer_is_named(tmp_path, name):
  if name:
    (tmp_path / name).write_text('{"nonsense')
  with pytest.raises(UserError) as caught:
    tokens.load_tokenizer(tmp_path)
  assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_golden_question_marks(llama):
  assert llama.pieces('What ?')[-1] == 1577
  assert llama.pieces('What?')[-1] == 29973
  assert llama.pieces('What??')[-1] == 8773
  assert llama.pieces('(What?)')[-1] == 7897


def test_prompt_is_the_training_text_without_its_answer(tokenizer):
  """The reference renders an answer of one newline and drops its last three ids."""
  trained = tokenizer.encode(prompts.render((('What is it?', '\n'),)))
  asked = tokens.encode_prompt(tokenizer, 'What is it?').tolist()
  assert trained[: len(asked)] == asked
  assert trained[-1] == tokenizer.eos


def test_targets_are_the_answers_and_their_ends(tokenizer):
  turns = (('What color is it?', 'Red.'), ('Why?', 'The circle moves left.'))
  encoded = tokens.encode_conversation(tokenizer, turns)
  said = encoded.ids[encoded.target].tolist()
  assert said == [
    *tokenizer.pieces('Red.'),
    tokenizer.eos,
    *tokenizer.pieces('The circle moves left.'),
    tokenizer.eos,
  ]
  first = int(np.argmax(encoded.target))
  colon = tokenizer.encode('ASSISTANT:')[-1]
  assert encoded.ids[first - 1] == colon
  assert (encoded.ids == tokenizer.bos).sum() == 1
  assert (encoded.ids == VIDEO).sum() == 1


def test_a_later_round_is_tokenized_on_its_own(tokenizer):
  """Register B32: 4.31 semantics, the piece after an inline </s> keeps its space."""
  turns = (('What?', 'Red.'), ('Why?', 'So.'))
  ids = tokens.encode_conversation(tokenizer, turns).ids.tolist()
  after = ids[ids.index(tokenizer.eos) + 1 :]
  alone = tokenizer.encode('USER: Why? ASSISTANT: So.')[1:]
  assert after == [*alone, tokenizer.eos]


def test_the_mark_moves_to_the_front():
  text = prompts.render((('What is <image> this?\n', None),))
  assert f'USER: {prompts.VIDEO_MARK}\nWhat is  this? ASSISTANT:' in text
  assert prompts.VIDEO_MARK not in prompts.render((('a <image>', None),), video=False)


@pytest.mark.parametrize('name', prompts.MARKS)
def test_a_mark_has_two_names(name):
  expected = prompts.render((('What?', None),))
  assert prompts.render(((f'{name}\nWhat?', None),)) == expected
  for template in ('vicuna_v1', 'llava_v0'):
    asked = prompts.ask(f'{name}\nWhat?', template)
    assert asked == prompts.ask('What?', template)


def test_a_mark_in_a_later_answer_is_refused(tokenizer):
  """It would be a second video of the sample."""
  turns = (('What?', 'Red.'), ('Why?', 'So <image>.'))
  with pytest.raises(ValueError, match='video mark <image> in an answer'):
    tokens.encode_conversation(tokenizer, turns)


def test_two_marks_are_refused(tiny):
  with pytest.raises(ValueError, match='2 video marks'):
    tiny.encode('<image> and <image>')


def test_scored_sequence_ends_with_the_prompts_last_word(tokenizer):
  from vlm_rlaif_jax.data.examples import Example, Pair
  from vlm_rlaif_jax.settings.sections import DataConfig

  example = Example('1', None, (('What?', ''),), {})
  settings = RewardPrompt(prompt='reward')
  data = DataConfig(buckets=(1024,))
  sample = pairs.encode_pair(
    Pair(example, ('Red.', 'Blue.'), 0), tokenizer, settings, data
  )
  suffix = pairs.prompt_ids(tokenizer, settings).tolist()
  for ids, answer in zip(sample.ids, ('Red.', 'Blue.'), strict=True):
    text = prompts.render((('What?', answer),), video=False)
    assert ids.tolist() == [*tokenizer.encode(text), *suffix]
    assert ids[-1] != tokenizer.eos


@pytest.mark.parametrize(
  ('placeholder', 'found'),
  [('empty', ''), ('literal', '{factual_prompt}'), ('captions', '  - a dog\n')],
)
def test_reward_prompt_placeholder(placeholder, found):
  """Register B01 and B02."""
  text = pairs.reward_prompt(RewardPrompt(placeholder=placeholder), ['a dog'])
  assert found in text
  assert ('{factual_prompt}' in text) == (placeholder == 'literal')


def test_decoding_stops_at_the_end(tokenizer):
  ids = [*tokenizer.pieces('The circle moves left.'), tokenizer.eos, 5, 6]
  assert tokenizer.decode([0, 0, *ids]) == 'The circle moves left.'


def test_options_are_one_token(tokenizer):
  options = [tokenizer.option(text) for text in ('A', 'B', 'Yes', 'No')]
  assert len(set(options)) == 4
  answer = tokens.encode_conversation(tokenizer, (('Which?', 'A'),))
  assert answer.ids[answer.target].tolist() == [options[0], tokenizer.eos]
  with pytest.raises(ValueError, match='must be one token'):
    tokenizer.option('The circle moves left.')


def test_options_of_a_byte_level_tokenizer_are_what_answers_begin_with(tmp_path):
  """' Yes' is another id there than 'Yes', which no answer begins with."""
  words = [' Yes', ' No', ' A', ' B', ' USER:', ' ASSISTANT:', 'Yes', 'No']
  vocabulary = {text: i for i, text in enumerate(['<s>', '</s>', '<unk>'])}
  for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
    vocabulary[letter] = len(vocabulary)
  merges = []
  for word in words:
    word = word.replace(' ', 'Ġ')
    for end in range(2, len(word) + 1):
      if word[:end] not in vocabulary:
        merges.append((word[: end - 1], word[end - 1]))
        vocabulary[word[:end]] = len(vocabulary)
  model = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  model.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = tokens.load_tokenizer(tmp_path)
  for text in ('Yes', 'No', 'A', 'B'):
    learned = tokens.encode_conversation(tokenizer, (('Is it?', text),))
    option = tokenizer.option(text)
    assert learned.ids[learned.target].tolist() == [option, tokenizer.eos]
    assert option == vocabulary[f'Ġ{text}'] != vocabulary[text]
  with pytest.raises(
    UserError, match="'C': must be one token after 'ASSISTANT:', is 2"
  ):
    tokenizer.option('C')


def test_padding():
  rows = [np.array([1, 2]), np.array([3])]
  np.testing.assert_array_equal(tokens.pad(rows, 3, 'left'), [[0, 1, 2], [0, 0, 3]])
  np.testing.assert_array_equal(tokens.pad(rows, 3, 'right'), [[1, 2, 0], [3, 0, 0]])
  with pytest.raises(ValueError, match='row 0 has 2 tokens, at most 1'):
    tokens.pad(rows, 1, 'left')


def test_what_two_tokenizers_mean_otherwise(tmp_path):
  """Ids, pieces and ends; a second one may have more added tokens."""
  detectors.write_tokenizer(tmp_path / 'plain')
  detectors.write_tokenizer(tmp_path / 'more')
  (tmp_path / 'more' / 'added_tokens.json').write_text('{"[SEG]": 500}')
  plain, more = (tokens.load_tokenizer(tmp_path / name) for name in ('plain', 'more'))
  assert tokens.difference(plain, plain) == tokens.difference(plain, more) == ''
  assert tokens.difference(more, plain) == "'[SEG]' is 500 and not there"
  path = tmp_path / 'more' / 'tokenizer.json'
  whole = json.loads(path.read_text())
  del whole['model']['vocab']['z']
  path.write_text(json.dumps(whole))
  fewer = tokens.load_tokenizer(tmp_path / 'more')
  assert tokens.difference(plain, fewer).startswith("'z' is ")
  (tmp_path / 'more' / 'added_tokens.json').unlink()
  fewer = tokens.load_tokenizer(tmp_path / 'more')
  assert tokens.difference(fewer, plain).endswith('is a piece of the other alone')


def test_tokens_of_the_tokenizer_that_are_no_text_are_refused_in_data(tmp_path, tiny):
  """Of whatever template; what a model wrote is read as it is."""
  detectors.write_tokenizer(tmp_path, last=('<|turn|>',))
  tokenizer = tokens.load_tokenizer(tmp_path)
  for text, allowed in (('Is it?', True), ('It is <|turn|> red.', False)):
    item = Example('a', None, ((text, 'Yes.'), ('And?', text)), {}, 'f row 3')
    if allowed:
      readers.encode_question(tokenizer, item)
      assert len(readers.tokenize_examples([item], tokenizer, DATA, Skipped('stop')))
      continue
    with pytest.raises(UserError, match=r"'<\|turn\|>' in a text is a token of the"):
      readers.encode_question(tokenizer, item)
    readers.encode_question(tokenizer, item, text)
    with pytest.raises(UserError, match=r"^f row 3: '<\|turn\|>' in a text is a token"):
      readers.tokenize_examples([item], tokenizer, DATA, Skipped('stop'))
  assert '<0x0A>' not in tiny.reserved and '</s>' in tiny.reserved  # bytes are text
