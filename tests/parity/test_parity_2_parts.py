"""CLIP's towers, projector and pooling, the splice, the decoder on its own.

float32; tolerance 1e-4 absolute, as everywhere that a whole network is run.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from tests.parity import oracle
from tests.tiny import clip_pixels
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.clip import Clip, ClipText, ClipVision
from vlm_rlaif_jax.nn.projector import Projector, pool
from vlm_rlaif_jax.nn.vlm import Vlm

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]
CFG = oracle.CFG


def close(ours, expected, tolerance=oracle.ATOL):
  np.testing.assert_allclose(ours, expected.detach().numpy(), atol=tolerance, rtol=0)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  model = oracle.clip()
  folder = oracle.saved(model, tmp_path_factory.mktemp('clip'))
  cfg, params = oracle.ours(folder, ['tower', 'text'])
  return model, cfg, params


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  model = oracle.llama()
  folder = oracle.saved(model, tmp_path_factory.mktemp('llama'))
  cfg, params = oracle.ours(folder, ['llama'])
  return model, Vlm(cfg), params


@pytest.fixture
def pixels(rng):
  """Channels last, as ours; `theirs` are channels first."""
  size = CFG.vision.image_size
  ours = rng.normal(size=(3, size, size, 3)).astype(np.float32)
  return ours, oracle.as_torch(ours).permute(0, 3, 1, 2)


def test_tower_hidden_state_without_class_token(clip, pixels):
  model, cfg, params = clip
  assert cfg.vision == CFG.vision
  actual = jax.jit(
    lambda p, x: ClipVision(cfg.vision, cfg.joint).apply(
      {'params': p}, x, method='features'
    )
  )(params['tower'], pixels[0])
  with torch.no_grad():
    states = model.vision_model(pixels[1], output_hidden_states=True).hidden_states
  close(actual, states[CFG.vision.feature_layer][:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize('eos', [60, 2])
def test_image_and_text_embeddings(tmp_path, pixels, rng, eos):
  """Old files say that the end of a text is 2 and mean the last id of all."""
  model = oracle.clip(eos=eos)
  cfg, params = oracle.ours(oracle.saved(model, tmp_path), ['tower', 'text'])
  end = 63 if eos == 2 else eos
  assert cfg.text == dataclasses.replace(CFG.text, eos_id=end)
  ids = rng.integers(3, 60, (2, CFG.text.context))
  ids[0, 4:], ids[1, -1] = end, end
  text = {
    name: value for name, value in params['text'].items() if name != 'logit_scale'
  }
  towers = {
    'vision': params['tower'],
    'text': text,
    'logit_scale': params['text']['logit_scale'],
  }

  @jax.jit
  def run(towers, pixels, ids):
    return (
      ClipVision(cfg.vision, cfg.joint).apply(
        {'params': towers['vision']}, pixels, method='embed'
      ),
      ClipText(cfg.text, cfg.joint).apply({'params': towers['text']}, ids),
      Clip(cfg.vision, cfg.text, cfg.joint).apply({'params': towers}, pixels, ids),
    )

  vision, described, similarities = run(towers, pixels[0], ids)
  with torch.no_grad():
    out = model(
      input_ids=oracle.as_torch(ids), pixel_values=pixels[1], attention_mask=None
    )
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  close(unit(vision), out.image_embeds)
  close(unit(described), out.text_embeds)
  close(similarities, out.logits_per_image)


@pytest.mark.parametrize('bare', [False, True])
@pytest.mark.parametrize('part', ['tower', 'text'])
def test_towers_under_the_names_of_transformers_4_and_5(clip, tmp_path, part, bare):
  """4 writes `vision_model.` and `text_model.`, 5 leaves them out of a tower alone."""
  import json

  import safetensors.torch

  model, _, params = clip
  name = {'tower': 'vision', 'text': 'text'}[part]
  state = getattr(model, f'{name}_model').state_dict()
  start = '' if bare else f'{name}_model.'
  state = {start + n: v for n, v in state.items() if 'position_ids' not in n}
  if part == 'text':  # CLIPTextModelWithProjection
    state['text_projection.weight'] = model.text_projection.weight.detach()
    state['logit_scale'] = model.logit_scale.detach()
  state = {n: v.contiguous() for n, v in state.items()}
  safetensors.torch.save_file(state, tmp_path / 'model.safetensors')
  config = getattr(model.config, f'{name}_config').to_dict()
  config['projection_dim'] = CFG.joint
  (tmp_path / 'config.json').write_text(json.dumps(config))
  _, actual = oracle.ours(tmp_path, [part])
  for leaf, value in actual[part].items():
    jax.tree.map(np.testing.assert_array_equal, value, params[part][leaf])
  assert 'layers' in actual[part] and 'positions' in actual[part]


def test_projector_and_pooling(rng):
  """Two linears, the exact erf-GELU between; then temporal tokens before spatial."""
  x = rng.normal(size=(1, 3, 4, 16)).astype(np.float32)
  first, second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
  params = {
    name: {'w': linear.weight.detach().numpy(), 'bias': linear.bias.detach().numpy()}
    for name, linear in (('in', first), ('out', second))
  }
  actual = pool(Projector(16).apply({'params': params}, x))
  with torch.no_grad():
    expected = second(torch.nn.functional.gelu(first(oracle.as_torch(x))))[0]
  close(actual[0], oracle.pooled(expected), 1e-5)


@pytest.mark.parametrize('pads', [0, 2])
def test_splice(rng, pads):
  ids = np.asarray([[0] * pads + [1, 7, -200, 9, 4]])
  text = rng.normal(size=(1, ids.shape[1], 16)).astype(np.float32)
  visual = rng.normal(size=(1, 6, 16)).astype(np.float32)
  actual, valid = vlm.splice(ids, ids != 0, text, visual)
  expected = oracle.spliced(
    ids[0], oracle.as_torch(text[0]), oracle.as_torch(visual[0])
  )
  close(actual[0], expected, 0)
  assert valid[0].tolist() == [False] * pads + [True] * (ids.shape[1] - pads + 5)


NOTHING = np.zeros((2, 1, CFG.llama.width), np.float32)  # a video that nobody shows


@pytest.mark.parametrize('pads', [(0, 0), (3, 0)])
def test_decoder_logits(llama, rng, pads):
  """With and without left padding; pads change nothing at real positions."""
  model, ours, params = llama
  ids = tokens.pad(
    [rng.integers(3, CFG.llama.vocab, 9 - p) for p in pads], 9, 'left'
  ).astype(np.int64)
  actual = _logits(ours, params, ids)
  with torch.no_grad():
    expected = model(
      oracle.as_torch(ids), attention_mask=oracle.as_torch((ids != 0).astype(np.int64))
    ).logits
  real = ids != 0
  np.testing.assert_allclose(
    actual[real], expected.numpy()[real], atol=oracle.ATOL, rtol=0
  )


def _logits(ours, params, ids):
  """Text alone: the place of the absent video has no width."""

  @jax.jit
  def run(params, ids):
    hidden, _, _ = vlm.hidden(ours, {'params': params}, ids, ids != 0, NOTHING)
    return vlm.logits(ours, {'params': params}, hidden)

  return np.asarray(run(params, ids))


@pytest.mark.slow
@pytest.mark.parametrize('pads', [(0, 0), (4, 0)])
def test_greedy_continuation(llama, rng, pads):
  model, ours, params = llama
  ids = tokens.pad(
    [rng.integers(3, CFG.llama.vocab, 10 - p) for p in pads], 10, 'left'
  ).astype(np.int64)
  with torch.no_grad():
    expected = model.generate(
      oracle.as_torch(ids),
      attention_mask=oracle.as_torch((ids != 0).astype(np.int64)),
      max_new_tokens=12,
      do_sample=False,
      pad_token_id=0,
      eos_token_id=2,
    ).numpy()[:, 10:]
  sample = jax.jit(
    lambda params, ids, keys: sampler.sample(
      ours, {'params': params}, ids, ids != 0, NOTHING, keys, sampler.Sampling(12, 0.0)
    )
  )
  keys = jax.random.split(jax.random.key(0), 2)
  actual = sample(params, ids.astype(np.int32), keys)
  np.testing.assert_array_equal(
    np.asarray(actual.tokens)[:, : expected.shape[1]], expected
  )


@pytest.mark.parametrize('shape', [(20, 30), (33, 17), (16, 16), (9, 40)])
@pytest.mark.parametrize('aspect', ['pad', 'crop'])
def test_pixels_are_those_of_the_clip_image_processor(rng, shape, aspect):
  """Bit for bit, resize and crop included; the border is the reference's."""
  from PIL import Image
  from transformers.models.clip import image_processing_pil_clip as clip_pil

  from vlm_rlaif_jax.data import image

  size = 16
  processor = clip_pil.CLIPImageProcessorPil(
    size={'shortest_edge': size}, crop_size={'height': size, 'width': size}
  )
  frame = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
  picture = Image.fromarray(frame)
  if aspect == 'pad':
    side = max(shape)
    square = Image.new('RGB', (side, side), (122, 116, 104))
    square.paste(picture, ((side - shape[1]) // 2, (side - shape[0]) // 2))
    picture = square
  expected = processor(picture, return_tensors='np')['pixel_values'][0]
  actual = clip_pixels(image.squares(frame[None], size, aspect))[0]
  np.testing.assert_array_equal(actual, expected.transpose(1, 2, 0))
