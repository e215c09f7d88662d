"""Every token of a tokenizer reaches the network, and the answer."""

import numpy as np
import pytest
from PIL import Image

import vlm_rlaif_jax
from tests.weights import detectors
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.weights import conversion
from vlm_rlaif_jax.weights.conversion import Request


@pytest.mark.slow
@pytest.mark.parametrize(
  ('first', 'last', 'trigger', 'yes', 'answers'),
  [
    (('!',), (), '!', 'Y', {'Stop! What moves?': 'Y', 'Stop. What moves?': 'N'}),
    (('!',), (), '?', '!', {'What moves?': '!', 'It moves.': 'N'}),
    ((), ('[SEG]',), '[SEG]', 'Y', {'A [SEG] moves': 'Y', 'A [SEC] moves': 'N'}),
    ((), ('[SEG]',), '?', '[SEG]', {'What moves?': '[SEG]', 'It moves.': 'N'}),
  ],
  ids=['reads id 0', 'writes id 0', 'reads an added token', 'writes an added token'],
)
def test_every_token_reaches_the_network_and_the_answer(
  tmp_path, first, last, trigger, yes, answers
):
  """As "!" in the tokenizers of Llama 3 and Qwen, whose id is 0."""
  vocab = detectors.write_tokenizer(tmp_path, first, last)
  detectors.write_detector(tmp_path, vocab, trigger, yes)
  picture = tmp_path / 'picture.png'
  Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(picture)
  model = vlm_rlaif_jax.load(tmp_path, dtype='float32', frames=4)
  found = {text: model.answer(picture, text, max_tokens=4) for text in answers}
  assert found == answers


def test_only_what_no_text_has_is_padding_of_logits(tmp_path):
  """0 is a token unless the tokenizer says that it is the unknown one."""
  vocab = detectors.write_tokenizer(tmp_path, ('!',))
  detectors.write_detector(tmp_path, vocab, '!', 'Y')
  model = vlm_rlaif_jax.load(tmp_path, dtype='float32', frames=2)
  frames = np.zeros((1, 2, 16, 16, 3), np.uint8)
  alone, padded, zero = (
    model.logits([ids], frames)[0, -1]
    for ids in ([-200, 5], [-1, -200, 5], [0, -200, 5])
  )
  np.testing.assert_allclose(padded, alone, atol=1e-5)
  assert zero[vocab['Y']] > padded[vocab['Y']] + 1


def test_a_tokenizer_of_another_network_is_refused(tmp_path):
  """Its last id would be read as the last row, which is another token's."""
  folder = tmp_path / 'base'
  vocab = detectors.write_tokenizer(folder)
  detectors.write_detector(folder, vocab, '!', 'Y')
  detectors.write_tokenizer(folder, last=('[SEG]',))
  message = rf'1 tokens without a row .* which has {len(vocab)}: .*\({len(vocab)}\)'
  with pytest.raises(UserError, match=message):
    vlm_rlaif_jax.load(folder)
  with pytest.raises(UserError, match=message):
    conversion.convert(folder, tmp_path / 'out', Request(to='hf'))
