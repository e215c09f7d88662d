"""The whole video model, and files that cross over in both directions.

float32; tolerance 1e-4 absolute on logits; round trips of files bit for bit.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import dataclasses
import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from tests.parity import oracle
from tests.weights import checkpoints
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.weights import (
  bases,
  model_config,
  names,
  network_files,
  weight_forms,
  writers,
)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]
CFG = oracle.CFG
PARTS = ('llama', 'projector', 'tower')


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
  model = oracle.llava()
  folder = oracle.saved(model, tmp_path_factory.mktemp('llava'))
  return model, folder


@pytest.fixture
def prompt(rng):
  """Two left-padded rows of text with a slot, and their frames."""
  rows = [
    np.r_[1, rng.integers(3, CFG.llama.vocab, 4), -200, rng.integers(3, 60, length)]
    for length in (6, 3)
  ]
  size = CFG.vision.image_size
  frames = rng.normal(size=(2, 5, size, size, 3)).astype(np.float32)
  return tokens.pad(rows, 12, 'left'), frames


def theirs_of(model, ids, frames) -> torch.Tensor:
  """Logits `[M, V]` of one row without pads, from transformers' parts alone."""
  pixels = oracle.as_torch(frames).permute(0, 3, 1, 2)
  network = model.model
  with torch.no_grad():
    states = network.vision_tower(pixels, output_hidden_states=True).hidden_states
    patches = states[CFG.vision.feature_layer][:, 1:]
    visual = oracle.pooled(network.multi_modal_projector(patches))
    words = network.language_model.embed_tokens(oracle.as_torch(np.maximum(ids, 0)))
    x = oracle.spliced(ids, words, visual)[None]
    hidden = network.language_model(inputs_embeds=x).last_hidden_state
    return model.lm_head(hidden)[0]


def ours_of(cfg, params, ids, frames):
  logits, valid = jax.jit(functools.partial(_ours, Vlm(cfg)))(params, ids, frames)
  return np.asarray(logits), np.asarray(valid)


def _ours(model, params, ids, frames):
  features = vlm.patch_features(model, params, frames.reshape(-1, *frames.shape[2:]))
  visual = vlm.project(
    model, params, features.reshape(*frames.shape[:2], *features.shape[1:])
  )
  hidden, valid, _ = vlm.hidden(model, {'params': params}, ids, ids != 0, visual)
  return vlm.logits(model, {'params': params}, hidden), valid


@pytest.mark.slow
def test_video_model(llava, prompt):
  """See, project, pool, splice, decode: two rows, one of them left-padded."""
  model, folder = llava
  cfg, params = oracle.ours(folder)
  assert (cfg.llama, cfg.vision) == (CFG.llama, CFG.vision)
  ids, frames = prompt
  found, valid = ours_of(cfg, params, ids, frames)
  for row in range(2):
    theirs = theirs_of(model, ids[row][ids[row] != 0], frames[row]).numpy()
    np.testing.assert_allclose(
      found[row][valid[row]],
      theirs[:, : CFG.llama.vocab],
      atol=oracle.ATOL,
      rtol=0,
    )


def test_all_layouts_say_the_same(llava, tmp_path):
  """Hugging Face's files -> ours -> each layout -> ours, bit for bit."""
  _, folder = llava
  writers.write_base(
    tmp_path / 'ours',
    network_files.read_network(folder),
    weight_forms.Form('float32'),
    PARTS,
    lambda items: items,
  )
  _, expected = oracle.ours(tmp_path / 'ours')
  for layout in ('llava', 'hf'):
    writers.write_foreign(
      tmp_path / layout,
      network_files.read_network(tmp_path / 'ours'),
      layout,
      'float32',
      lambda items: items,
      shard=20_000,
    )
    assert len(list((tmp_path / layout).glob('model-*.safetensors'))) > 1
    _, found = oracle.ours(tmp_path / layout)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """One of our bases, in both foreign layouts."""
  root = tmp_path_factory.mktemp('written')
  params = trees.unflatten(checkpoints.random_weights())
  bases.save(root / 'ours', params, CFG)
  for layout in ('llava', 'hf'):
    checkpoint = network_files.read_network(root / 'ours')
    writers.write_foreign(
      root / layout, checkpoint, layout, 'float32', lambda items: items, shard=20_000
    )
  return root, params


@pytest.mark.slow
def test_our_files_load_as_llava_for_conditional_generation(written, prompt):
  root, params = written
  model, notes = transformers.LlavaForConditionalGeneration.from_pretrained(
    root / 'hf', output_loading_info=True, attn_implementation='eager'
  )
  assert not any(
    notes[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
  )
  ids, frames = prompt
  found, valid = ours_of(CFG, params, ids, frames)
  theirs = theirs_of(model.eval(), ids[0], frames[0]).numpy()
  np.testing.assert_allclose(
    found[0], theirs[:, : CFG.llama.vocab], atol=oracle.ATOL, rtol=0
  )
  assert valid[0].all()


@pytest.mark.slow
def test_our_files_load_as_llama(written, rng):
  """The original layout: transformers knows its decoder, and skips the rest."""
  root, params = written
  config = transformers.LlamaConfig.from_pretrained(root / 'llava')
  model, notes = transformers.LlamaForCausalLM.from_pretrained(
    root / 'llava', config=config, output_loading_info=True, attn_implementation='eager'
  )
  assert not notes['missing_keys'] and not notes['mismatched_keys']
  assert all(
    'mm_projector' in name or 'vision_tower' in name
    for name in notes['unexpected_keys']
  )
  ids = rng.integers(3, CFG.llama.vocab, (2, 9))
  nothing = np.zeros((2, 1, CFG.llama.width), np.float32)
  ours = Vlm(CFG)
  hidden, _, _ = vlm.hidden(ours, {'params': params}, ids, ids != 0, nothing)
  with torch.no_grad():
    theirs = model.eval()(oracle.as_torch(ids)).logits.numpy()
  np.testing.assert_allclose(
    vlm.logits(ours, {'params': params}, hidden), theirs, atol=oracle.ATOL, rtol=0
  )


def test_a_sharded_bin_with_rotary_buffers(llava, tmp_path):
  """The layout of 2023: PyTorch shards with an index; a half-precision one, too."""
  import json

  model, folder = llava

  state = {}
  for name, value in model.state_dict().items():
    value = value[: CFG.llama.vocab] if value.shape[0] == CFG.llama.vocab + 2 else value
    state[names.llava_name(names.neutral_name(name))] = value.half()
  for i in range(CFG.llama.layers):
    state[f'model.layers.{i}.self_attn.rotary_emb.inv_freq'] = 10000.0 ** -(
      torch.arange(4) / 4
    )
  order = sorted(state)
  shards = [order[: len(order) // 2], order[len(order) // 2 :]]
  where = {}
  for number, part in enumerate(shards, 1):
    file = f'pytorch_model-{number:05}-of-00002.bin'
    torch.save({name: state[name] for name in part}, tmp_path / file)
    where |= dict.fromkeys(part, file)
  index = {'metadata': {}, 'weight_map': where}
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
  checkpoint = network_files.read_network(folder)
  config = model_config.to_config_json(checkpoint.cfg, 'llava', 'float16', 64)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  cfg, found = oracle.ours(tmp_path)
  assert cfg.llama == CFG.llama and cfg.dtype == 'float16'
  _, expected = oracle.ours(folder)
  expected = trees.flatten(expected)
  for name, value in trees.flatten(found).items():
    half = expected[name].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(value, half, name)


def test_a_tower_that_is_not_inside_is_taken_from_clip(llava, tmp_path):
  import safetensors.torch

  model, folder = llava
  state = {
    name: value.contiguous()
    for name, value in model.state_dict().items()
    if 'vision_tower' not in name
  }
  safetensors.torch.save_file(state, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  clip = oracle.saved(oracle.clip(), tmp_path / 'clip')
  cfg, found = oracle.ours(tmp_path, vision=clip)
  assert dataclasses.replace(cfg.text, eos_id=2) == CFG.text
  _, towers = oracle.ours(clip, ['tower', 'text'])
  jax.tree.map(np.testing.assert_array_equal, found['tower'], towers['tower'])
  jax.tree.map(np.testing.assert_array_equal, found['text'], towers['text'])
