"""How texts are cut for a tower of a small context, and CLIP's tokenizer files."""

import pytest

from tests import clip_tokenizer
from vlm_rlaif_jax.data import text_tokens
from vlm_rlaif_jax.data.text_tokens import TextTokenizer
from vlm_rlaif_jax.settings.build import UserError


def tokenizer(start=(1,)):
  """One id a word."""
  return TextTokenizer(lambda text: [10 + len(w) for w in text.split()], start, 2)


def test_a_text_that_fits_is_one_window():
  assert tokenizer().windows('a bb ccc', 5) == [[(1, 11, 12, 13, 2)]]
  assert tokenizer(()).windows('a bb ccc', 4) == [[(11, 12, 13, 2)]]
  assert tokenizer().windows('', 5) == [[(1, 2)]]
  assert not tokenizer().is_long('a bb ccc', 5)


def test_a_longer_one_is_cut_into_sentences_and_those_into_windows():
  text = 'A bb. Is 3.5 more?\n\nccc dddd eeeee ffffff g! '
  assert tokenizer().is_long(text, 5)
  assert tokenizer().windows(text, 5) == [
    [(1, 11, 13, 2)],
    [(1, 12, 13, 15, 2)],
    [(1, 13, 14, 15, 2), (1, 16, 12, 2)],
  ]


def test_all_words_of_a_long_text_are_read_once():
  text = ' '.join(f'{"x" * n}{"." if n % 4 == 0 else ""}' for n in range(1, 30))
  windows = tokenizer().windows(text, 6)
  ids = [i for part in windows for ids in part for i in ids[1:-1]]
  assert ids == list(tokenizer().pieces(text))
  assert all(len(ids) <= 6 for part in windows for ids in part)


def test_clips_tokenizer_is_read_from_its_files(tmp_path):
  whole = clip_tokenizer.write(tmp_path)
  size = len(whole.get_vocab())
  ours = text_tokens.load_clip(tmp_path, size, whole.eos_token_id)
  for text in ('A man runs.', '  The  DOG\nbarks, 3 times! ', ''):
    expected = whole(text)['input_ids']
    assert [list(ids) for (ids,) in ours.windows(text, 77)] == [expected]


def test_a_tokenizer_of_another_tower_is_refused(tmp_path):
  whole = clip_tokenizer.write(tmp_path)
  size = len(whole.get_vocab())
  with pytest.raises(
    UserError, match=rf'ids up to {size - 1} .* expected ids below 64'
  ):
    text_tokens.load_clip(tmp_path, 64, whole.eos_token_id)
  with pytest.raises(UserError, match='the end 5, those of the text tower'):
    text_tokens.load_clip(tmp_path, size, 5)
  (tmp_path / 'merges.txt').unlink()
  (tmp_path / 'vocab.json').write_text('{')
  with pytest.raises(UserError, match='its tokenizer cannot be read'):
    text_tokens.load_clip(tmp_path, size, whole.eos_token_id)
  (tmp_path / 'vocab.json').unlink()
  with pytest.raises(UserError, match='no tokenizer of a text tower'):
    text_tokens.load_clip(tmp_path, size, whole.eos_token_id)


def test_a_tokenizer_that_was_saved_while_it_padded(tmp_path):
  """tokenizer.json keeps how the last texts were cut and filled up."""
  whole = clip_tokenizer.write(tmp_path)
  rows, end = len(whole.get_vocab()), whole.eos_token_id
  text = 'the man run the the the'
  expected = text_tokens.load_clip(tmp_path, rows, end).pieces(text)
  whole.backend_tokenizer.enable_truncation(4)
  whole.backend_tokenizer.enable_padding(length=9, pad_id=end)
  whole.backend_tokenizer.save(str(tmp_path / 'tokenizer.json'))
  assert text_tokens.load_clip(tmp_path, rows, end).pieces(text) == expected
