"""What a network cannot be asked is one line, and so is what it cannot answer."""

import dataclasses
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlm_rlaif_jax
from tests import tiny
from tests.weights import checkpoints
from vlm_rlaif_jax.api import VideoModel
from vlm_rlaif_jax.inference.generation import GenerationError
from vlm_rlaif_jax.inference.requests import LoadError
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.weights import conversion

CFG = dataclasses.replace(
  tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, vocab=768, max_positions=640)
)


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
  path = tmp_path_factory.mktemp('picture') / 'picture.png'
  Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(path)
  return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('api') / 'ours'
  checkpoints.write_base(folder, cfg=CFG)
  return vlm_rlaif_jax.load(folder, dtype='float32', frames=4)


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'temperature': -1.0}, 'temperature: must be finite and >= 0, got -1.0'),
    ({'temperature': float('nan')}, 'temperature: must be finite and >= 0, got nan'),
    ({'max_tokens': 0}, 'max_tokens: must be a whole number >= 1, got 0'),
    ({'max_tokens': 2.5}, 'max_tokens: must be a whole number >= 1, got 2.5'),
    (
      {'temperature': 1e-40},
      r'temperature: must be 0 \(greedy\) or >= 1e-06, got 1e-40',
    ),
    ({'seed': 2**32}, 'seed: must be a whole number in 0..4294967295, got 4294967296'),
    ({'question': 'What is <unk>?'}, 'question: <unk> is a token of a template'),
    ({'question': 'caf\udce9?'}, 'question: character 3 is a lone surrogate'),
  ],
)
def test_a_question_that_cannot_be_asked(model, picture, asked, message):
  question = asked.pop('question', 'What moves?')
  for ask in (model.answer, lambda *args, **rest: list(model.stream(*args, **rest))):
    with pytest.raises(LoadError, match=message):
      ask(picture, question, **asked)


def test_a_network_of_another_conversation(tmp_path):
  """As a LLaVA on Llama 3, which would be asked in Vicuna's words."""
  checkpoints.write_base(tmp_path / 'ours', cfg=CFG)
  checkpoints.write_foreign(tmp_path / 'llava', tmp_path / 'ours', 'llava')
  template = tmp_path / 'llava' / 'chat_template.jinja'
  template.write_text('{{ "<|start_header_id|>assistant" }}')
  with pytest.warns(UserWarning, match=r'chat_template\.jinja: its chat template is'):
    vlm_rlaif_jax.load(tmp_path / 'llava', dtype='float32', frames=4)
  lines = []
  conversion.convert(
    tmp_path / 'llava', tmp_path / 'out', conversion.Request(), log=lines.append
  )
  assert any('chat_template.jinja: the network has learned' in x for x in lines)
  template.write_text('{{ "USER: " }}{{ "ASSISTANT:" }}')
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    vlm_rlaif_jax.load(tmp_path / 'llava', dtype='float32', frames=4)


def test_ids_without_a_row_are_named(model):
  frames = np.zeros((1, 4, 16, 16, 3), np.uint8)
  for wrong in (768, -100, -7):
    ids = np.asarray([[1, -200, wrong, 5]])
    with pytest.raises(LoadError, match=rf'token_ids: {wrong} at \[0, 2\] is no token'):
      model.logits(ids, frames)
  assert model.logits(np.asarray([[-1, 1, -200, 767]]), frames).shape[-1] == 768


@pytest.mark.parametrize(
  ('ids', 'frames', 'message'),
  [
    ([[1.0, -200.0, 5.9]], (1, 4, 16, 16), 'expected whole numbers, got float64'),
    ([[1, -200, 2**32 + 5]], (1, 4, 16, 16), r'token_ids: 4294967301 at \[0, 2\]'),
    ([[1, -200], [1, -200, 5]], (2, 4, 16, 16), 'rows of different lengths; fill them'),
    ([[1, -200, 5]], (1, 4, 0, 16), r'frames: no pixels, got uint8\(1, 4, 0, 16, 3\)'),
    ([[1, -200, 5]], (1, 0, 16, 16), 'frames: no pixels'),
    ([[1, -200, *[5] * 640]], (1, 4, 16, 16), 'exceed the 640 positions'),
  ],
)
def test_what_is_no_batch_of_texts_and_videos(model, ids, frames, message):
  """Numbers were cut to whole ones and to 32 bits, and texts had no end."""
  with pytest.raises(LoadError, match=message):
    model.logits(ids, np.zeros((*frames, 3), np.uint8))


def test_pads_take_no_positions(model):
  frames = np.zeros((1, 4, 16, 16, 3), np.uint8)
  padded = model.logits([[-1] * 640 + [1, -200, 5]], frames)[0, -1]
  np.testing.assert_allclose(
    padded, model.logits([[1, -200, 5]], frames)[0, -1], atol=1e-4
  )


def test_a_file_that_is_replaced_is_read_again(model, tmp_path):
  """Also by one of the same size and time, as tools that copy a tree leave it."""
  path, other = tmp_path / 'clip.bmp', tmp_path / 'other.bmp'
  for place, shade in ((path, 9), (other, 200)):
    Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(place)
    os.utime(place, ns=(0, 0))
  first, second = np.asarray(model.encode(path)), np.asarray(model.encode(other))
  assert np.abs(first - second).max() > 0.1
  model.encode(path)
  os.replace(other, path)
  np.testing.assert_array_equal(model.encode(path), second)


def test_an_answer_with_a_mark_is_not_scored(model, picture):
  """It would be a second video, or stand there as text."""
  head = heads.init_head(jax.random.key(0), CFG.llama.width)
  scorer = VideoModel(model.model, model.variables, model.tokenizer, 4, head)
  for mark in ('<image>', '<video>'):
    with pytest.raises(LoadError, match=f'answer: the video mark {mark} in an answer'):
      scorer.score(picture, 'What moves?', f'A {mark} dog.')


def test_a_network_of_nan_has_no_answer_and_no_score(model, picture):
  """The largest of NaN is id 0, which no text shows."""
  variables = jax.tree.map(lambda x: x, model.variables)
  norm = variables['params']['llama']['final_norm']
  norm['scale'] = jnp.full_like(norm['scale'], jnp.nan)
  head = heads.init_head(jax.random.key(0), CFG.llama.width)
  broken = VideoModel(model.model, variables, model.tokenizer, 4, head)
  with pytest.raises(GenerationError, match='of an answer are NaN'):
    broken.answer(picture, 'What moves?', max_tokens=3)
  with pytest.raises(GenerationError, match='of an answer are NaN'):
    list(broken.stream(picture, 'What moves?', max_tokens=3))
  with pytest.raises(GenerationError, match='scores of a reward model are NaN'):
    broken.score(picture, 'What moves?', 'Nothing.')


def test_frames_are_those_of_the_decoder(model):
  assert (model.frames, model.aspect) == (4, 'pad')
  with pytest.raises(AttributeError, match='frames'):
    model.frames = 8
  with pytest.raises(LoadError, match='frames: must be a whole number >= 0, got -1'):
    vlm_rlaif_jax.load('nowhere', frames=-1)
