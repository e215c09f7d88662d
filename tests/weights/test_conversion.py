"""Conversion in, out and back, for every kind of file; no PyTorch needed."""

import dataclasses
import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

from configs import models as sized
from tests import tiny
from tests.weights import checkpoints
from tests.weights.damage import refused
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.settings import models
from vlm_rlaif_jax.settings.models import LlamaConfig, VlmConfig
from vlm_rlaif_jax.weights import (
  adapters,
  artifacts,
  bases,
  conversion,
  head_files,
  llama_config,
  model_config,
  names,
  network_files,
  network_shapes,
  peft_files,
  tensor_files,
  torch_files,
  weight_table,
)
from vlm_rlaif_jax.weights.conversion import Request
from vlm_rlaif_jax.weights.errors import ConvertError


def test_the_table_of_names_is_that_of_the_networks():
  expected = trees.flatten(network_shapes.abstract_params(tiny.CFG))
  found = {leaf.name: leaf.full_shape for leaf in weight_table.weights(tiny.CFG)}
  assert {n: s for n, s in found.items() if not n.startswith('text/')} == {
    name: leaf.shape for name, leaf in expected.items()
  }


@pytest.mark.parametrize('layout', ['llava', 'hf', 'bins'])
def test_round_trip(root, tmp_path, layout):
  conversion.convert(root / layout, tmp_path / 'out', Request())
  checkpoints.assert_same(tmp_path / 'out', checkpoints.without_joint())
  cfg = model_config.read_model_json(tmp_path / 'out' / 'model.json')
  assert (cfg.llama, cfg.vision) == (tiny.CFG.llama, tiny.CFG.vision)
  assert cfg.dtype == 'float32'


def test_a_base_without_joint_embedding_serves_the_stages(root, tmp_path):
  conversion.convert(root / 'llava', tmp_path / 'out', Request())
  base = bases.load(str(tmp_path / 'out'), tiny.CFG)
  assert base.fingerprint == bases.fingerprint(tmp_path / 'out')
  assert bases.tuned(base, bases.MERGED, tiny.CFG) is base


def test_tokenizer_and_generation_settings_travel(root, tmp_path):
  conversion.convert(root / 'llava', tmp_path / 'out', Request())
  for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
    original = (root / 'ours' / name).read_bytes()
    assert (root / 'llava' / name).read_bytes() == original
    assert (tmp_path / 'out' / name).read_bytes() == original


@pytest.mark.slow
def test_a_bare_sentencepiece_file_travels(tmp_path):
  """To Hugging Face's layout with <image> and <pad> beside its 32,000 pieces."""
  source = pathlib.Path(os.environ.get('VLM_RLAIF_LLAMA_TOKENIZER', ''))
  if not source.is_file():
    pytest.skip('VLM_RLAIF_LLAMA_TOKENIZER does not name a sentencepiece file')
  llama = dataclasses.replace(tiny.CFG.llama, vocab=32000, width=4, mlp=4, head_dim=2)
  base = checkpoints.write_base(
    tmp_path / 'ours', cfg=dataclasses.replace(tiny.CFG, llama=llama)
  )
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (base / name).unlink()
  shutil.copy(source, base / 'tokenizer.model')
  conversion.convert(base, tmp_path / 'llava', Request(to='llava'))
  conversion.convert(tmp_path / 'llava', tmp_path / 'hf', Request(to='hf'))
  conversion.convert(tmp_path / 'llava', tmp_path / 'again', Request())
  for name in ('tokenizer.model', 'generation_config.json'):
    for folder in ('llava', 'hf', 'again'):
      assert (tmp_path / folder / name).read_bytes() == (base / name).read_bytes()
  assert sorted(tmp_path.glob('[la]*/tokenizer*')) == [
    tmp_path / folder / 'tokenizer.model' for folder in ('again', 'llava')
  ]
  text = 'A dog. USER: What ?'
  ids = [1, 319, 11203, 29889, 3148, 1001, 29901, 1724, 1577]
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  assert theirs(text)['input_ids'] == ids
  assert theirs.convert_tokens_to_ids(['<image>', '<pad>']) == [32000, 32001]
  for folder in ('again', 'hf'):
    assert tokens.load_tokenizer(tmp_path / folder).encode(text) == ids


def test_dtypes(root, tmp_path):
  """Norms stay in float32; float16 becomes bfloat16 in ours unless a dtype is given."""
  conversion.convert(
    root / 'ours', tmp_path / 'h', Request(to='llava', dtype='float16')
  )
  conversion.convert(tmp_path / 'h', tmp_path / 'b', Request())
  conversion.convert(tmp_path / 'h', tmp_path / 'f', Request(dtype='float16'))
  for folder, dtype in (('b', ml_dtypes.bfloat16), ('f', np.float16)):
    found = checkpoints.read_folder(tmp_path / folder)
    for name, value in checkpoints.without_joint().items():
      if name.endswith('norm/scale'):
        expected = value.astype(np.float16).astype(np.float32)
      else:
        expected = value.astype(np.float16).astype(np.float32).astype(dtype)
      assert found[name].dtype == expected.dtype
      np.testing.assert_array_equal(found[name], expected)


def test_a_projector_only_file(root, tmp_path):
  for number, start in enumerate(('model.', '', 'base_model.model.model.')):
    flat = checkpoints.write_projector(tmp_path / 'mm.bin', start)
    out = tmp_path / str(number)
    conversion.convert(root / 'llava', out, Request(projector=str(tmp_path / 'mm.bin')))
    checkpoints.assert_same(out, checkpoints.without_joint() | flat)


def test_parts_alone(root, tmp_path):
  """A decoder without tower and projector: named, or written as it is."""
  tensors = network_files.read_network(root / 'ours').tensors
  decoder = {n: t.read() for n, t in tensors.items() if n.startswith(('model', 'lm_'))}
  folder = tmp_path / 'vicuna'
  folder.mkdir()
  safetensors.numpy.save_file(decoder, folder / 'model.safetensors')
  (folder / 'config.json').write_text(
    json.dumps(
      {'model_type': 'llama', **llama_config.to_llama(tiny.CFG.llama, 'float32')}
    )
  )
  with pytest.raises(ConvertError, match='no projector and no tower; give --projector'):
    conversion.convert(folder, tmp_path / 'out', Request())
  conversion.convert(folder, tmp_path / 'out', Request(partial=True))
  assert all(
    name.startswith('llama/') for name in checkpoints.read_folder(tmp_path / 'out')
  )


# ---------------------------------------------------------------- adapters


LAYOUTS = ('', 'lora_default', 'adapter_model/lora_default')


@pytest.mark.parametrize('place', LAYOUTS)
def test_an_adapter_becomes_an_artifact_and_peft_files_again(root, tmp_path, place):
  """policy initialization: adapter alone, nested or not."""
  source = tmp_path / 'in'
  flat = checkpoints.write_adapter(source / place)
  out = tmp_path / 'init'
  conversion.convert(source, out, Request(base=str(root / 'ours')))
  found = artifacts.load(out, 'init', bases.fingerprint(root / 'ours'))
  np.testing.assert_equal(trees.flatten(found.parts['lora']), flat)
  assert adapters.lora_of(found) == tiny.LORA
  conversion.convert(out, tmp_path / 'peft', Request(base_name='base'))
  again = peft_files.read(tmp_path / 'peft')
  assert again.base == 'base' and again.lora == tiny.LORA
  np.testing.assert_equal(again.flat, flat)


def test_a_reward_model(root, tmp_path):
  source = tmp_path / 'checkpoint-400'
  flat = checkpoints.write_adapter(source / 'adapter_model' / 'lora_default')
  head = checkpoints.write_head(source / 'reward_head')
  conversion.convert(source, tmp_path / 'reward', Request(base=str(root / 'ours')))
  found = artifacts.load(tmp_path / 'reward', 'reward')
  np.testing.assert_equal(found.parts['head'], head)
  conversion.convert(tmp_path / 'reward', tmp_path / 'out', Request())
  np.testing.assert_equal(head_files.read(tmp_path / 'out' / 'reward_head'), head)
  again = peft_files.read(peft_files.find(tmp_path / 'out')[''])
  np.testing.assert_equal(again.flat, flat)


def test_a_ppo_checkpoint(root, tmp_path):
  source = tmp_path / 'checkpoint-10'
  policy = checkpoints.write_adapter(source / 'adapter_model' / 'lora_policy')
  value = checkpoints.write_adapter(source / 'adapter_model' / 'lora_value', seed=9)
  head = checkpoints.write_head(source / 'value_head.pt')
  base = str(root / 'ours')
  with pytest.raises(ConvertError, match='give --critic'):
    conversion.convert(source, tmp_path / 'ppo', Request(base=base))
  conversion.convert(source, tmp_path / 'ppo', Request(base=base, critic=base))
  found = artifacts.load(tmp_path / 'ppo', 'ppo')
  assert found.info['critic_base'] == found.info['base']
  np.testing.assert_equal(trees.flatten(found.parts['value']), value)
  conversion.convert(tmp_path / 'ppo', tmp_path / 'out', Request())
  places = peft_files.find(tmp_path / 'out')
  np.testing.assert_equal(peft_files.read(places['policy']).flat, policy)
  np.testing.assert_equal(peft_files.read(places['value']).flat, value)
  np.testing.assert_equal(head_files.read(tmp_path / 'out' / 'value_head.pt'), head)


def test_a_tuned_adapter_with_its_projector(root, tmp_path):
  """SFT: adapter in the root, projector beside it; and merged, as `bases` merges."""
  source = tmp_path / 'sft-lora'
  flat = checkpoints.write_adapter(source)
  projector = checkpoints.write_projector(
    source / 'non_lora_trainables.bin', 'base_model.model.model.'
  )
  base = str(root / 'ours')
  conversion.convert(source, tmp_path / 'sft', Request(base=base))
  loaded = bases.load(base, tiny.CFG)
  expected = trees.flatten(bases.tuned(loaded, tmp_path / 'sft', tiny.CFG).params)
  for number, (path, request) in enumerate(
    (
      (source, Request(base=base, merge=True, to='ours')),
      (tmp_path / 'sft', Request(merge=True, to='ours')),
    )
  ):
    conversion.convert(path, tmp_path / str(number), request)
    checkpoints.assert_same(tmp_path / str(number), expected)
  conversion.convert(tmp_path / 'sft', tmp_path / 'out', Request())
  np.testing.assert_equal(peft_files.read(tmp_path / 'out').flat, flat)
  again = network_files.read_projector(tmp_path / 'out' / 'non_lora_trainables.bin')
  assert len(again) == len(projector) == 4


def test_a_later_stage_stands_on_the_tuned_base(root, tmp_path):
  """base + SFT + policy, found by their fingerprints and merged in that order."""
  base = str(root / 'ours')
  checkpoints.write_adapter(tmp_path / 'sft-lora')
  checkpoints.write_projector(
    tmp_path / 'sft-lora' / 'non_lora_trainables.bin', 'model.'
  )
  conversion.convert(
    tmp_path / 'sft-lora', tmp_path / 'run' / 'sft', Request(base=base)
  )
  policy = checkpoints.write_adapter(tmp_path / 'policy-lora', seed=8)
  sft = str(tmp_path / 'run' / 'sft')
  conversion.convert(
    tmp_path / 'policy-lora', tmp_path / 'run' / 'init', Request(base=base, sft=sft)
  )
  conversion.convert(
    tmp_path / 'run' / 'init', tmp_path / 'out', Request(to='ours', merge=True)
  )
  tuned = bases.tuned(bases.load(base, tiny.CFG), tmp_path / 'run' / 'sft', tiny.CFG)
  merged = adapters.merge(tuned.params, trees.unflatten(policy), tiny.LORA)
  checkpoints.assert_same(tmp_path / 'out', trees.flatten(merged))


def test_rank_stabilised_scaling_is_kept(tmp_path):
  checkpoints.write_adapter(tmp_path)
  path = tmp_path / 'adapter_config.json'
  config = json.loads(path.read_text()) | {'use_rslora': True}
  path.write_text(json.dumps(config))
  lora = peft_files.read(tmp_path).lora
  assert lora.alpha / lora.rank == pytest.approx(8 / 4**0.5)


# ---------------------------------------------------------------- released sizes


SMALL = VlmConfig(
  name='13b',
  llama=LlamaConfig(
    vocab=8, width=5120, mlp=8, layers=40, heads=2, kv_heads=2, head_dim=4
  ),
)


def test_a_13b_adapter_is_refused_on_a_7b_base(tmp_path):
  """Register B33: the released policy adapter is named 7b and has the size of 13b."""
  lora = dataclasses.replace(tiny.LORA, rank=1, targets=('q', 'k'))
  checkpoints.write_adapter(tmp_path, SMALL, lora)
  adapter = peft_files.read(tmp_path)
  assert adapter.describe() == (
    'adapter of rank 1 on q, k for a decoder of 40 layers and width 5120 (13b)'
  )
  with pytest.raises(ConvertError) as caught:
    peft_files.check_fits(adapter, VlmConfig(), 'policy_init_7b', 'llava-7b')
  assert str(caught.value) == (
    'policy_init_7b: made for a decoder of 40 layers and width 5120 (13b); llava-7b '
    'has 32 layers and width 4096 (7b)'
  )


@pytest.mark.parametrize(
  ('width', 'mlp', 'layers', 'heads', 'name', 'gigabytes'),
  [(4096, 11008, 32, 32, '7b', 14.126), (5120, 13824, 40, 40, '13b', 26.702)],
)
def test_released_sizes(width, mlp, layers, heads, name, gigabytes):
  """The shards of the released SFT models add up to this, two bytes a weight."""
  llama = LlamaConfig(width=width, mlp=mlp, layers=layers, heads=heads, kv_heads=heads)
  cfg = VlmConfig(llama=llama)
  total = sum(
    2 * int(np.prod(leaf.full_shape))
    for leaf in weight_table.weights(cfg)
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
  )
  assert total / 1e9 == pytest.approx(gigabytes, abs=5e-4)
  assert llama_config.size_name(width, layers) == name
  adapter = sum(
    models.LoraConfig().rank * sum(leaf.shape) * layers
    for leaf in weight_table.weights(cfg)
    if leaf.is_linear
  )
  assert adapter == {'7b': 159_907_840, '13b': 250_347_520}[name]


@pytest.mark.parametrize('size', ['7b', '13b'])
def test_the_released_networks_are_known_by_their_shapes(tmp_path, size):
  """Their shards with rotary buffers alone written: float16, tower inside."""
  cfg = sized.named(size)
  half, single = np.dtype(np.float16), np.dtype(np.float32)
  shapes = {
    names.llava_name(source): (leaf.foreign_shape, half)
    for leaf in weight_table.weights(cfg)
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
    for source in leaf.sources
  } | {
    f'model.layers.{i}.self_attn.rotary_emb.inv_freq': ((64,), single)
    for i in range(cfg.llama.layers)
  }
  writer = tensor_files.ShardWriter(tmp_path, shapes, 10 * 10**9)  # sparse
  frequencies = (1e4 ** -(np.arange(64) / 64)).astype(single)
  for name in shapes:
    if name.endswith('inv_freq'):
      writer.put(name, frequencies)
  config = {
    'model_type': 'llava', 'num_hidden_layers': cfg.llama.layers,
    'num_attention_heads': cfg.llama.heads, 'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096, 'mm_projector_type': 'mlp2x_gelu',
    'mm_vision_select_layer': -2, 'pretraining_tp': 1, 'use_cache': True,
  }  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(config))
  found = network_files.read_network(tmp_path)
  assert (found.cfg.name, found.cfg.llama) == (size, cfg.llama)
  assert found.cfg.vision == cfg.vision
  assert found.describe().startswith(
    f'{size}: decoder of {cfg.llama.layers} layers and width {cfg.llama.width}, '
    'two-layer projector, tower of 24 layers and width 1024; float16, '
  )
  assert {leaf.part for leaf in found.weights()} == {'llama', 'projector', 'tower'}


def test_the_released_policy_adapter_has_an_empty_file_beside_it(root, tmp_path):
  """`lora_default/`, config.json and an empty non_lora_trainables.bin: stage init."""
  source = tmp_path / 'vlm_policy_init_7b_lora'
  flat = checkpoints.write_adapter(source / 'lora_default')
  torch_files.write(source / 'non_lora_trainables.bin', {})
  shutil.copy(root / 'llava' / 'config.json', source)
  conversion.convert(source, tmp_path / 'init', Request(base=str(root / 'ours')))
  found = artifacts.load(tmp_path / 'init', 'init')
  np.testing.assert_equal(trees.flatten(found.parts['lora']), flat)


@pytest.mark.parametrize('name', ['tokenizer.json', 'generation_config.json'])
def test_unreadable_companions(root, tmp_path, name):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (folder / name).write_text('{"nonsense": ')
  for to in ('ours', 'hf'):
    refused(folder, 'broken', 'Expecting value', request=Request(to=to))


def test_an_interrupted_conversion_leaves_nothing(root, tmp_path):
  def until_half(items):
    for number, item in enumerate(items):
      if number == 20:
        raise KeyboardInterrupt
      yield item

  for to in ('ours', 'llava', 'hf'):
    with pytest.raises(KeyboardInterrupt):
      conversion.convert(root / 'llava', tmp_path / 'out', Request(to=to), until_half)
    assert not list(tmp_path.iterdir())
