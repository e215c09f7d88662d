"""Every kind of damage ends in one clear line and no output."""

import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tests import tiny
from tests.convert import made
from vlm_rlaif_jax import exchange
from vlm_rlaif_jax.config.build import UserError
from vlm_rlaif_jax.convert import sources
from vlm_rlaif_jax.exchange import Request


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  made.base(folder / 'ours')
  made.foreign(folder / 'llava', folder / 'ours', 'llava')
  made.bins(folder / 'bins', folder / 'llava')
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
    exchange.convert(source, out, request or Request())
  message = str(caught.value)
  assert '\n' not in message
  for text in said:
    assert text in message, message
  assert not out.exists() and not out.with_name('out.part').exists()


def edit(path, change):
  """Rewrites one shard with other tensors."""
  tensors = {n: t.read() for n, t in sources.files.read_file(path).items()}
  tensors = change(tensors)
  if path.suffix == '.bin':
    made.writing.write_torch(path, tensors)
  else:
    safetensors.numpy.save_file(tensors, path)


def edit_json(path, change):
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reindex(folder):
  """Makes the index say what the shards hold."""
  (index,) = folder.glob('*.index.json')
  where = {n: f.name for f in shards(folder) for n in sources.files.read_file(f)}
  edit_json(index, lambda old: {**old, 'weight_map': where})


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
  stored = next(iter(sources.files.read_file(file).values()))
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
    text in name and 'vision' not in name for name in sources.files.read_file(path)
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
  refused(folder, "rope type 'linear'")


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
      exchange.convert(root / 'llava', tmp_path / 'out', Request(to=to), until_half)
    assert not list(tmp_path.iterdir())


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
  import dataclasses

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


def test_head_of_another_width(root, adapter):
  made.head(adapter / 'reward_head', 24)
  refused(adapter, 'is for width 24, the decoder has width 16', request=on(root))


def test_a_changed_base_is_noticed(root, tmp_path, adapter):
  """A stage knows the fingerprint of what it was trained on."""
  exchange.convert(adapter, tmp_path / 'init', on(root))
  other = made.base(tmp_path / 'other', seed=1)
  refused(
    tmp_path / 'init', 'trained on weights', request=Request(to='hf', base=str(other))
  )


def test_no_such_folder(tmp_path):
  refused(tmp_path / 'nowhere', 'no such folder')
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'not a checkpoint')
