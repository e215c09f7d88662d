"""Every kind of damage ends in one clear line and no output."""

import dataclasses
import io
import json
import pickle
import re
import shutil
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tests import tiny
from tests.weights import made
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.models import LlamaConfig, VlmConfig
from vlm_rlaif_jax.weights import (
  artifacts,
  conversion,
  file_writer,
  model_config,
  names,
  peft_files,
  readers,
  tensor_files,
)
from vlm_rlaif_jax.weights.request import Request
from vlm_rlaif_jax.weights.tensor_files import ConvertError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  made.base(folder / 'ours')
  made.foreign(folder / 'llava', folder / 'ours', 'llava')
  made.bins(folder / 'bins', folder / 'llava')
  made.foreign(folder / 'hf', folder / 'ours', 'hf')
  return folder


@pytest.fixture(params=['llava', 'bins'])
def folder(request, root, tmp_path):
  """A copy that a test may break, as safetensors and as .bin."""
  return shutil.copytree(root / request.param, tmp_path / 'broken')


def shards(folder):
  return sorted([*folder.glob('*model-*.safetensors'), *folder.glob('*model-*.bin')])


def refused(source, *said, request=None):
  """One line that says all this, and nothing written."""
  out = source.parent / 'out'
  with pytest.raises(UserError) as caught:
    conversion.convert(source, out, request or Request())
  message = str(caught.value)
  assert '\n' not in message
  for text in said:
    assert text in message, message
  assert not out.exists() and not out.with_name('out.part').exists()


def edit(path, change):
  """Rewrites one shard with other tensors."""
  tensors = {n: t.read() for n, t in tensor_files.read_file(path).items()}
  tensors = change(tensors)
  if path.suffix == '.bin':
    file_writer.write_torch(path, tensors)
  else:
    safetensors.numpy.save_file(tensors, path)


def edit_json(path, change):
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reindex(folder):
  """Makes the index say what the shards hold."""
  (index,) = folder.glob('*.index.json')
  where = {n: f.name for f in shards(folder) for n in tensor_files.read_file(f)}
  edit_json(index, lambda old: {**old, 'weight_map': where})


def altered(source, folder, tensors=lambda t: t, config=lambda c: c):
  """The same checkpoint in one file, with other tensors and another config."""
  folder.mkdir()
  safetensors.numpy.save_file(tensors(made.read(source)), folder / 'model.safetensors')
  said = json.loads((source / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config(said)))
  return folder


def without(*texts):
  return lambda tensors: {
    name: value for name, value in tensors.items() if not any(x in name for x in texts)
  }


def test_missing_shard(folder):
  lost = shards(folder)[1]
  lost.unlink()
  refused(folder, 'missing', lost.name, '.index.json')


def test_truncated_shard(folder):
  cut = shards(folder)[1]
  cut.write_bytes(cut.read_bytes()[:-200])
  refused(folder, cut.name, 'truncated')


def test_header_cut_off(folder):
  cut = shards(folder)[0]
  cut.write_bytes(cut.read_bytes()[:6])
  refused(folder, cut.name)


def test_corrupt_bytes_of_a_bin_are_found_by_its_checksums(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  file = shards(folder)[0]
  data = bytearray(file.read_bytes())
  stored = next(iter(tensor_files.read_file(file).values()))
  data[stored.offset] ^= 0xFF
  file.write_bytes(bytes(data))
  refused(folder, file.name, 'corrupt')


def test_corrupt_header(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  file = shards(folder)[0]
  data = bytearray(file.read_bytes())
  data[8:12] = b'\xff\xff\xff\xff'
  file.write_bytes(bytes(data))
  refused(folder, file.name, 'corrupt')


def test_wrong_shape(folder):
  def change(tensors):
    name = next(n for n in tensors if 'q_proj' in n and 'vision' not in n)
    return {**tensors, name: np.zeros((3, 5), np.float32)}

  path = next(f for f in shards(folder) if _has(f, '.0.self_attn.q_proj'))
  edit(path, change)
  refused(
    folder, 'model.layers.0.self_attn.q_proj.weight has shape (3, 5), expected (32, 16)'
  )


def _has(path, text):
  return any(
    text in name and 'vision' not in name for name in tensor_files.read_file(path)
  )


def test_wrong_dtype(folder):
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  edit(path, lambda t: {**t, 'model.norm.weight': np.ones(16, np.int64)})
  refused(folder, 'model.norm.weight has dtype int64, expected a floating one')


def test_missing_tensor(folder):
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  edit(path, lambda t: {n: v for n, v in t.items() if n != 'model.norm.weight'})
  refused(folder, path.name, 'model.norm.weight')
  reindex(folder)
  refused(folder, 'missing model.norm.weight (16,)')


def test_extra_tensor(folder):
  path = shards(folder)[0]
  edit(path, lambda t: {**t, 'model.layers.9.extra': np.ones(2, np.float32)})
  reindex(folder)
  refused(folder, 'left over model.layers.9.extra (2,)')


def test_unreadable_json(folder):
  (folder / 'config.json').write_text('{"hidden_size": ')
  refused(folder, 'config.json: not JSON')


@pytest.mark.parametrize('name', ['tokenizer.json', 'generation_config.json'])
def test_unreadable_companions(root, tmp_path, name):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (folder / name).write_text('{"nonsense": ')
  for to in ('ours', 'hf'):
    refused(folder, 'broken', 'Expecting value', request=Request(to=to))


def test_unreadable_index(folder):
  (index,) = folder.glob('*.index.json')
  index.write_text('[]')
  refused(folder, index.name, 'a dict was expected')
  index.write_text('{"weight_map": {"a": "../../elsewhere"}}')
  refused(folder, index.name, 'no weight_map of tensor and file names')


def test_another_kind_of_network(folder):
  edit_json(
    folder / 'config.json', lambda c: {**c, 'rope_scaling': {'rope_type': 'linear'}}
  )
  refused(folder, "rope_scaling.rope_type is 'linear', expected 'default'")


def test_values_that_are_not_finite(folder):
  """Found while writing: what was written is taken away again."""
  path = next(f for f in shards(folder) if _has(f, 'model.norm.weight'))
  broken = np.full(16, np.nan, np.float32)
  edit(path, lambda t: {**t, 'model.norm.weight': broken})
  refused(folder, 'llama/final_norm/scale: has values that are not finite')


def test_float16_overflow(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  path = next(f for f in shards(folder) if _has(f, 'lm_head'))
  edit(path, lambda t: {**t, 'lm_head.weight': np.full((64, 16), 1e5, np.float32)})
  refused(folder, 'not finite as float16', request=Request(dtype='float16'))


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


# ---------------------------------------------------------------- safetensors


def edit_header(path, change):
  data = path.read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = change(json.loads(data[8 : 8 + length]))
  text = (header if isinstance(header, str) else json.dumps(header)).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + length :])


def first_entry(**changes):
  """Changes fields of the tensor that comes first."""

  def change(header):
    name = next(n for n in header if n != '__metadata__')
    made = {key: new(header[name]) for key, new in changes.items()}
    return {**header, name: {**header[name], **made}}

  return change


def all_at_the_start(header):
  made = {}
  for name, entry in header.items():
    if name != '__metadata__':
      first, stop = entry['data_offsets']
      made[name] = {**entry, 'data_offsets': [0, stop - first]}
  return made


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda h: [1], 'a list, expected a dict'),
    (lambda h: None, 'a NoneType, expected a dict'),
    (lambda h: '[' * 100_000, 'its header is corrupt'),
    (lambda h: {**h, '__metadata__': [1]}, '__metadata__ is no dict of texts'),
    (lambda h: {**h, '__metadata__': {'a': 1}}, '__metadata__ is no dict of texts'),
    (all_at_the_start, 'begins at byte'),
    (
      first_entry(data_offsets=lambda e: [-8, e['data_offsets'][1] - 8]),
      'its header is corrupt',
    ),
    (
      first_entry(data_offsets=lambda e: [float(x) for x in e['data_offsets']]),
      'its header is corrupt',
    ),
    (first_entry(data_offsets=lambda e: [0]), 'its header is corrupt'),
    (first_entry(shape=lambda e: [float(x) for x in e['shape']]), 'header is corrupt'),
    (first_entry(shape=lambda e: [-x for x in e['shape']]), 'header is corrupt'),
    (first_entry(shape=lambda e: 'ab'), 'its header is corrupt'),
    (first_entry(dtype=lambda e: ['F32']), 'its header is corrupt'),
    (first_entry(dtype=lambda e: 'F8_E4M3'), 'has dtype F8_E4M3, not known'),
    (first_entry(dtype=lambda e: 'F16'), 'its shape needs'),
  ],
)
def test_a_header_that_does_not_fit_the_file(root, tmp_path, change, said):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  edit_header(shards(folder)[0], change)
  refused(folder, shards(folder)[0].name, said)


def test_bytes_after_the_tensors(root, tmp_path):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  path = shards(folder)[0]
  path.write_bytes(path.read_bytes() + bytes(12))
  refused(folder, path.name, 'has 12 bytes after')


def test_a_gap_between_tensors(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file({'a': np.ones(4, np.float32)}, path)
  edit_header(path, first_entry(data_offsets=lambda e: [4, 16], shape=lambda e: [3]))
  with pytest.raises(ConvertError, match='a begins at byte'):
    tensor_files.read_file(path)


def test_tensors_without_elements_are_read(tmp_path):
  path = tmp_path / 'x.safetensors'
  empty, one = np.ones((0, 3), np.float32), np.ones((), np.float32)
  safetensors.numpy.save_file({'a': empty, 'b': one, 'c': empty}, path)
  assert {n: t.shape for n, t in tensor_files.read_file(path).items()} == {
    'a': (0, 3), 'b': (), 'c': (0, 3),
  }  # fmt: skip


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors.index.json'])
def test_json_that_is_nested_too_deep(root, tmp_path, name):
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (folder / name).write_text('{"a":' * 100_000)
  refused(folder, f'{name}: not JSON')


def test_no_tensors(root, tmp_path):
  refused(
    altered(root / 'llava', tmp_path / 'a', lambda t: {}), 'its files hold no tensors'
  )
  folder = shutil.copytree(root / 'llava', tmp_path / 'broken')
  (index,) = folder.glob('*.index.json')
  for where in ({}, None):
    index.write_text(json.dumps({'weight_map': where}))
    refused(folder, index.name, 'no weight_map of tensor and file names')


# ---------------------------------------------------------------- holes in the tower


VISION = 'model.vision_tower.vision_tower.vision_model.'


@pytest.mark.parametrize(
  'lost',
  ['encoder.layers.2.self_attn.q_proj.weight', 'post_layernorm.weight'],
)
@pytest.mark.parametrize('to', ['ours', 'llava', 'hf'])
def test_what_the_projector_does_not_read_is_absent_only_whole(
  root, tmp_path, lost, to
):
  folder = altered(root / 'llava', tmp_path / 'in', without(VISION + lost))
  refused(folder, f'missing vision.{lost}', request=Request(to=to))


def test_a_tower_without_what_the_projector_does_not_read(root, tmp_path):
  """As LLaVA needs it; transformers would draw the rest at random."""
  folder = altered(
    root / 'llava',
    tmp_path / 'in',
    without('post_layernorm', VISION + 'encoder.layers.2.'),
  )
  refused(folder, 'layers.2.layer_norm1.weight', 'hf layout', request=Request(to='hf'))
  for to in ('ours', 'llava'):
    conversion.convert(folder, tmp_path / to, Request(to=to))
    assert not any('tail' in n or 'post_' in n for n in made.read(tmp_path / to)) or (
      to == 'llava'
    )
  cfg = readers.open_checkpoint(tmp_path / 'ours').cfg
  assert cfg.vision == tiny.CFG.vision
  refused(tmp_path / 'ours', 'which the hf layout needs', request=Request(to='hf'))


@pytest.mark.parametrize(
  ('lost', 'said'),
  [
    ((), None),
    (('layers.23.',), None),
    (('layers.23.', 'post_layernorm'), None),
    (('layers.22.', 'layers.23.'), 'expected 24 layers of the tower'),
    (('layers.22.',), 'missing vision.encoder.layers.22.'),
    (('layers.23.mlp.fc1.bias',), 'missing vision.encoder.layers.23.mlp.fc1.bias'),
    (('post_layernorm.bias',), 'missing vision.post_layernorm.bias (1024,)'),
  ],
)
def test_the_released_tower_has_the_layers_of_clip(tmp_path, lost, said):
  """Their config says nothing of the tower; counting layers would move its features."""
  llama = LlamaConfig(
    vocab=8, width=8, mlp=8, layers=1, heads=1, kv_heads=1, head_dim=8
  )
  cfg = VlmConfig(llama=llama)
  shapes = {
    names.original(source): (leaf.theirs, np.dtype(np.float16))
    for leaf in names.leaves(cfg)
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
    for source in leaf.sources
    if not any(f'vision.encoder.{x}' in source or f'vision.{x}' in source for x in lost)
  }
  file_writer.Shards(tmp_path, shapes)  # sparse: nothing is put in
  config = {'model_type': 'llava', **model_config.to_llama(cfg, 'float16')}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  if said is None:
    found = readers.open_checkpoint(tmp_path)
    assert found.cfg.vision == cfg.vision
    assert ('tower/tail/q/w' in {leaf.name for leaf in found.leaves()}) == (not lost)
    return
  with pytest.raises(ConvertError, match=re.escape(said)):
    readers.open_checkpoint(tmp_path).leaves()


def test_a_tower_of_no_known_size_needs_its_config(root, tmp_path):
  """And takes it from the CLIP that is given beside it."""
  less = lambda c: {n: v for n, v in c.items() if n != 'vision_config'}
  folder = altered(root / 'llava', tmp_path / 'in', config=less)
  refused(
    folder,
    'vision_config.num_hidden_layers is missing, expected that of a tower of width 16 '
    'and patch 8; give --vision',
  )
  clip = tmp_path / 'clip'
  clip.mkdir()
  shutil.copy(folder / 'model.safetensors', clip)
  (clip / 'config.json').write_text(json.dumps(model_config.to_vision(tiny.CFG)))
  conversion.convert(folder, tmp_path / 'out', Request(vision=str(clip)))
  cut = altered(
    root / 'llava',
    tmp_path / 'cut',
    without('layers.2.', VISION + 'encoder.layers.1.'),
    less,
  )
  with pytest.raises(ConvertError, match='expected 3 layers of the tower'):
    sizes_of(cut, clip_config=model_config.to_vision(tiny.CFG))


def sizes_of(folder, clip_config):
  tensors = names.neutral(tensor_files.read_file(folder / 'model.safetensors'))
  config = tensor_files.read_json(folder / 'config.json')
  return model_config.of_foreign(
    tensors, model_config.Section(config), model_config.Section(clip_config), 'float32'
  )


def test_a_decoder_needs_the_number_of_its_layers(root, tmp_path):
  less = lambda c: {n: v for n, v in c.items() if n != 'num_hidden_layers'}
  cut = without('model.layers.1.')
  refused(
    altered(root / 'llava', tmp_path / 'a', cut, less),
    'config.json: num_hidden_layers is missing, expected an integer >= 1',
  )
  refused(
    altered(root / 'llava', tmp_path / 'b', cut),
    'expected 2 layers of the decoder (num_hidden_layers), found 1',
  )


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('num_hidden_layers', value) for value in ('2', 2.0, 0, -1, None, True)),
    *(('num_attention_heads', value) for value in ('4', 0, -4, None)),
    *(('rms_norm_eps', value) for value in ('x', None, 0, float('nan'), True)),
    *(('max_position_embeddings', value) for value in ('q', None, 0)),
    *(('text_config', value) for value in ([1], 'abc')),
    ('vision_config', 3),
    *(('model_type', value) for value in ('mistral', 'qwen2', 'llava_next', None, 3)),
    ('sliding_window', 16),
    ('attention_bias', True),
    ('mlp_bias', True),
    *(('mm_vision_select_layer', value) for value in ('x', 1, -4, [-2, -3])),
    ('mm_vision_select_feature', 'cls_patch'),
    *(('mm_projector_type', value) for value in ('linear', ['a'])),
    *(('rope_scaling', value) for value in ('x', [1])),
    ('rope_theta', 'x'),
    ('head_dim', 'x'),
    ('hidden_act', 'gelu'),
  ],
)
def test_a_config_that_says_something_else(root, tmp_path, field, value):
  folder = altered(
    root / 'llava', tmp_path / 'in', config=lambda c: {**c, field: value}
  )
  refused(folder, f'config.json: {field} is {value!r}, expected ')


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vision_feature_select_strategy', 'full'),
    *(('image_token_index', value) for value in ('x', 10, 62, 0, -200)),
    ('vision_feature_layer', [-2, -3]),
    ('projector_hidden_act', 'silu'),
  ],
)
def test_a_config_of_the_other_layout(root, tmp_path, field, value):
  folder = altered(root / 'hf', tmp_path / 'in', config=lambda c: {**c, field: value})
  refused(folder, f'config.json: {field} is {value!r}, expected ')


@pytest.mark.parametrize('section', ['text_config', 'vision_config'])
def test_a_part_of_another_kind(root, tmp_path, section):
  folder = altered(
    root / 'hf',
    tmp_path / 'in',
    config=lambda c: {**c, section: {**c[section], 'model_type': 'siglip'}},
  )
  refused(folder, f"config.json: {section}.model_type is 'siglip', expected ")


@pytest.mark.parametrize('field', model_config._NULLABLE)
def test_null_may_stand_for_nothing(root, tmp_path, field):
  def nothing(config):
    assert config.get(field) is None or field != 'rope_scaling'
    return {**config, field: None}

  wide = dataclasses.replace(
    tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, kv_heads=4, head_dim=4)
  )
  made.foreign(tmp_path / 'in', made.base(tmp_path / 'ours', cfg=wide), 'llava')
  folder = altered(tmp_path / 'in', tmp_path / 'null', config=nothing)
  if field == 'vision_config':
    refused(folder, 'vision_config.num_hidden_layers is missing')
  else:
    assert readers.open_checkpoint(folder).cfg.llama == wide.llama


@pytest.mark.parametrize(
  'text', ['{"llama": 3, "llama.width": 4}', '{"llama.kv_heads": 0}', '{"llama": 3}']
)
def test_sizes_of_ours_that_are_none(root, tmp_path, text):
  folder = shutil.copytree(root / 'ours', tmp_path / 'broken')
  (folder / 'model.json').write_text(text)
  refused(folder, 'broken')


# ---------------------------------------------------------------- pickles


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), 'w'))


def as_bin(path, data: bytes):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x/data.pkl', data)


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_malicious_pickle_is_not_run(root, tmp_path, protocol):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  as_bin(path, pickle.dumps({'a': Evil(tmp_path / 'ran')}, protocol))
  refused(folder, path.name, 'open, which weights do not need; it was not run')
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\x80\x02',
    b'\x80\x02K\x01.',
    b'\x80\x02}X\x01\x00\x00\x00aK\x01s.',
    b'\x80\x02ctorch\nload\n.',
    b'\x80\x02cbuiltins\neval\n.',
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.',
    b'\x80\x02(X\x01\x00\x00\x00atQ.',
    b'garbage',
  ],
)
def test_nonsense_in_a_pickle(root, tmp_path, data):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  as_bin(path, data)
  refused(folder, path.name)


def test_a_tensor_that_reaches_beyond_its_bytes(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  buffer = io.BytesIO()
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, 'w') as new:
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, data[:-4] if name.endswith('/data/0') else data)
  path.write_bytes(buffer.getvalue())
  refused(folder, path.name, 'reaches beyond its bytes')


def test_an_old_pytorch_file_is_named(root, tmp_path):
  folder = shutil.copytree(root / 'bins', tmp_path / 'broken')
  path = shards(folder)[0]
  path.write_bytes(pickle.dumps({'a': 1}, 2))
  refused(folder, path.name, 'PyTorch before 1.6')


# ---------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path):
  folder = tmp_path / 'adapter'
  made.adapter(folder)
  return folder


def on(root):
  return Request(base=str(root / 'ours'))


def test_adapter_on_the_wrong_base(root, tmp_path):
  wide = dataclasses.replace(
    tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, width=24, layers=3)
  )
  made.adapter(tmp_path / 'adapter', wide)
  refused(
    tmp_path / 'adapter',
    '3 layers and width 24',
    '2 layers and width 16',
    request=on(root),
  )


def test_a_value_adapter_alone(root, tmp_path):
  made.adapter(tmp_path / 'lora_value')
  refused(tmp_path, 'has lora_value and no lora_policy', request=on(root))


def test_adapter_without_a_base(adapter):
  refused(adapter, '--base')
  refused(adapter, "its config names 'elsewhere'", request=Request(to='llava'))


def test_adapter_with_a_hole(root, adapter):
  path = adapter / 'adapter_model.safetensors'
  lost = 'base_model.model.model.layers.1.mlp.up_proj.lora_B.weight'
  edit(path, lambda t: {n: v for n, v in t.items() if n != lost})
  refused(adapter, f'missing {lost}', request=on(root))


def test_adapter_with_something_else(root, adapter):
  path = adapter / 'adapter_model.safetensors'
  name = 'base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight'
  edit(path, lambda t: {**t, name: np.ones((4, 16), np.float32)})
  refused(adapter, f'left over {name}', request=on(root))


@pytest.mark.parametrize(
  ('field', 'value'),
  [('use_dora', True), ('bias', 'all'), ('peft_type', 'IA3'), ('r', 5)],
)
def test_adapter_of_another_kind(root, adapter, field, value):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, field: value})
  expected = 'rank 5 was expected' if field == 'r' else field
  refused(adapter, expected, request=on(root))


Q = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
AGAIN = Q.replace('lora_A.', 'lora_A.default.')


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda t: {**t, Q: t[Q].astype(np.int64)}, 'q_proj.lora_A.weight has dtype int64'),
    (
      lambda t: {n: v.astype(np.int32) for n, v in t.items()},
      'expected a floating one',
    ),
    (lambda t: {n: v.astype(bool) for n, v in t.items()}, 'expected a floating one'),
    (lambda t: {**t, Q: t[Q].astype(np.float16)}, 'layer 0 has float16'),
    (lambda t: {**t, Q: t[Q] * np.nan}, f'{Q} has values that are not finite'),
    (lambda t: {**t, Q: t[Q] + np.inf}, f'{Q} has values that are not finite'),
    (lambda t: {**t, AGAIN: 2 * t[Q]}, f'two tensors mean {Q}'),
    (
      without('q_proj'),
      'missing the adapter of self_attn.q_proj, which target_modules',
    ),
    (
      without('lora_B'),
      'missing base_model.model.model.layers.0.self_attn.q_proj.lora_B',
    ),
    (lambda t: {}, 'holds no adapter of the decoder'),
  ],
)
@pytest.mark.parametrize('merge', [False, True])
def test_tensors_of_an_adapter(root, adapter, change, said, merge):
  edit(adapter / 'adapter_model.safetensors', change)
  request = dataclasses.replace(on(root), merge=merge, to='ours')
  refused(adapter, said, request=request)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('lora_alpha', value) for value in (None, 'x', float('nan'), 0, True)),
    *(('lora_dropout', value) for value in ('x', 1.0, -0.1, float('nan'))),
    *(('r', value) for value in (None, 'x', 4.0, 0, True)),
    *(('target_modules', value) for value in (3, '(')),
  ],
)
def test_config_of_an_adapter(root, adapter, field, value):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, field: value})
  refused(
    adapter, f'adapter_config.json: {field} is {value!r}, expected ', request=on(root)
  )


@pytest.mark.parametrize(
  'fields',
  [
    {'rank_pattern': None, 'alpha_pattern': None, 'lora_dropout': None},
    {'rank_pattern': {}, 'use_dora': False, 'layer_replication': None},
    {'target_modules': None},
    {'target_modules': 'all-linear'},
    {'target_modules': ['q_proj', 'mlp.up_proj', 'fc1']},
    {'target_modules': r'.*language_model.*\.(q_proj|v_proj)'},
  ],
)
def test_what_an_adapter_may_leave_open(adapter, fields):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, **fields})
  assert peft_files.read(adapter).lora.targets == names.LINEARS


@pytest.mark.parametrize(
  'targets',
  ['all-linear', ['q_proj', 'v_proj'], r'.*\.(q|k)_proj', ['self_attn.q_proj']],
)
def test_a_target_without_its_adapter(root, adapter, targets):
  edit_json(adapter / 'adapter_config.json', lambda c: {**c, 'target_modules': targets})
  edit(adapter / 'adapter_model.safetensors', without('q_proj'))
  refused(adapter, 'missing the adapter of self_attn.q_proj', request=on(root))
  edit_json(
    adapter / 'adapter_config.json', lambda c: {**c, 'exclude_modules': ['q_proj']}
  )
  assert 'q' not in peft_files.read(adapter).lora.targets


BAD = (
  (lambda v: v.astype(np.int64), 'has dtype int64, expected a floating one'),
  (lambda v: v * np.nan, 'has values that are not finite'),
)


@pytest.mark.parametrize(('change', 'said'), BAD)
@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_values_of_a_head(root, adapter, name, change, said):
  made.head(adapter / 'reward_head')
  tensors = {
    n: t.read() for n, t in tensor_files.read_file(adapter / 'reward_head').items()
  }
  tensors[name] = change(tensors[name])
  file_writer.write_torch(adapter / 'reward_head', tensors)
  refused(adapter, f'reward_head: {name} {said}', request=on(root))


@pytest.mark.parametrize(('change', 'said'), BAD)
def test_values_of_a_projector(root, adapter, change, said):
  path = adapter / 'non_lora_trainables.bin'
  made.projector(path, 'base_model.model.model.')
  edit(path, lambda t: {n: change(v) for n, v in t.items()})
  refused(adapter, f'{path.name}: projector.0', said, request=on(root))


def test_a_projector_twice(root, adapter):
  path = adapter / 'non_lora_trainables.bin'
  made.projector(path, 'base_model.model.model.')
  edit(
    path, lambda t: {**t, **{n.removeprefix('base_model.'): v for n, v in t.items()}}
  )
  refused(adapter, f'{path.name}: two tensors mean projector.0', request=on(root))


@pytest.mark.parametrize('kind', ['reward', 'ppo'])
def test_a_projector_is_not_dropped_for_a_head(root, tmp_path, kind):
  source = tmp_path / 'in'
  inner = {'reward': ('lora_default',), 'ppo': ('lora_policy', 'lora_value')}[kind]
  for name in inner:
    made.adapter(source / 'adapter_model' / name)
  made.head(source / {'reward': 'reward_head', 'ppo': 'value_head.pt'}[kind])
  made.projector(source / 'non_lora_trainables.bin', 'base_model.model.model.')
  request = dataclasses.replace(on(root), critic=str(root / 'ours'))
  refused(source, 'a projector beside a head', request=request)


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda i: [1], 'holds a list, a dict was expected'),
    (lambda i: {**i, 'lora': 3}, 'lora is 3, expected a dict'),
    (lambda i: {**i, 'lora': {'x': 1}}, 'lora.rank is missing'),
    (lambda i: {**i, 'lora': {**i['lora'], 'x': 1}}, 'lora.x: no such field'),
    (lambda i: {**i, 'lora': {**i['lora'], 'alpha': 'x'}}, 'lora.alpha: must be float'),
    (lambda i: {**i, 'lora': {**i['lora'], 'targets': None}}, 'artifact.json: lora'),
    (lambda i: {**i, 'lora': {**i['lora'], 'targets': ['q']}}, 'lora.targets are not'),
    (lambda i: {**i, 'lora': {**i['lora'], 'rank': 7}}, 'expected (7, 16)'),
    (lambda i: {**i, 'parts': []}, 'contents have fingerprint'),
    (lambda i: {**i, 'parts': [3]}, 'parts is [3], expected'),
    (lambda i: {**i, 'parts': ['../lora']}, "parts is ['../lora'], expected"),
    (lambda i: {**i, 'scoring': {'x': 1}}, 'scoring.x: no such field'),
    (lambda i: {**i, 'scoring': 'x'}, "scoring is 'x', expected a dict"),
    (lambda i: {**i, 'base_folder': 3}, 'base_folder is 3, expected a text'),
    *(
      (lambda i, n=name: {k: v for k, v in i.items() if k != n}, name)
      for name in ('lora', 'parts', 'fingerprint', 'base', 'stage')
    ),
    (
      lambda i: {**i, 'lora': {k: v for k, v in i['lora'].items() if k != 'targets'}},
      'lora.targets is missing',
    ),
  ],
)
def test_a_damaged_artifact(root, tmp_path, adapter, change, said):
  conversion.convert(adapter, tmp_path / 'init', on(root))
  path = tmp_path / 'init' / 'artifact' / 'artifact.json'
  edit_json(path, change)
  refused(tmp_path / 'init', 'artifact.json', said)


def test_an_artifact_without_a_part_of_its_stage(root, tmp_path, adapter):
  made.projector(adapter / 'non_lora_trainables.bin', 'model.')
  conversion.convert(adapter, tmp_path / 'sft', on(root))
  whole = artifacts.load(tmp_path / 'sft', 'sft')
  for part in ('lora', 'projector'):
    less = {name: tree for name, tree in whole.parts.items() if name != part}
    artifacts.save(
      tmp_path / 'sft' / 'artifact', dataclasses.replace(whole, parts=less)
    )
    refused(tmp_path / 'sft', f'artifact.json: parts is missing {part} of stage sft')


def test_head_of_another_width(root, adapter):
  made.head(adapter / 'reward_head', 24)
  refused(adapter, 'is for width 24, the decoder has width 16', request=on(root))


def test_a_changed_base_is_noticed(root, tmp_path, adapter):
  """A stage knows the fingerprint of what it was trained on."""
  conversion.convert(adapter, tmp_path / 'init', on(root))
  other = made.base(tmp_path / 'other', seed=1)
  refused(
    tmp_path / 'init', 'trained on weights', request=Request(to='hf', base=str(other))
  )


def test_no_such_folder(tmp_path):
  refused(tmp_path / 'nowhere', 'no such folder')
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'not a checkpoint')
