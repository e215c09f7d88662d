"""Small checkpoints of every kind, written without PyTorch."""

import json
import pathlib
import re
import shutil

import numpy as np
import safetensors.numpy

from tests import tiny
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.weights import (
  bases,
  folders,
  head_files,
  network_files,
  peft_files,
  tensor_files,
  torch_files,
  weight_table,
  writers,
)

CFG = tiny.CFG
PARTS = ('llama', 'projector', 'tower')


def random_weights(seed: int = 0, cfg=CFG) -> dict[str, np.ndarray]:
  """Our weights at random, by name, with the shapes of the table."""
  rng = np.random.default_rng(seed)
  flat = {}
  for leaf in weight_table.weights(cfg):
    if leaf.part != 'text':
      value = 0.3 * rng.normal(size=leaf.full_shape)
      flat[leaf.name] = (value + leaf.name.endswith('scale')).astype(np.float32)
  return flat


def write_base(folder: pathlib.Path, seed: int = 0, cfg=CFG) -> pathlib.Path:
  """One of our bases, with a tokenizer and generation settings."""
  bases.save(folder, trees.unflatten(random_weights(seed, cfg)), cfg)
  write_tokenizer(folder, cfg.llama.vocab)
  (folder / 'generation_config.json').write_text('{"max_length": 77}')
  return folder


def write_tokenizer(folder: pathlib.Path, rows: int) -> None:
  """The first tokens of the tiny tokenizer, at most as many as a table has rows."""
  shutil.copy(bases.TINY / 'tokenizer_config.json', folder)
  whole = json.loads((bases.TINY / 'tokenizer.json').read_text())
  model = whole['model']
  model['vocab'] = {text: i for text, i in model['vocab'].items() if i < rows}
  model['merges'] = [x for x in model['merges'] if ''.join(x) in model['vocab']]
  whole['added_tokens'] = [x for x in whole['added_tokens'] if x['id'] < rows]
  (folder / 'tokenizer.json').write_text(json.dumps(whole))


def write_foreign(folder: pathlib.Path, ours: pathlib.Path, layout: str, shard=20_000):
  writers.write_foreign(
    folder,
    network_files.read_network(ours),
    layout,
    'float32',
    lambda items: items,
    shard=shard,
  )
  return folder


def write_bins(folder: pathlib.Path, llava: pathlib.Path) -> pathlib.Path:
  """The same shards as PyTorch files with an index."""
  folder.mkdir()
  shutil.copy(llava / 'config.json', folder)
  where = {}
  for file in sorted(llava.glob('*.safetensors')):
    name = f'pytorch_{file.stem}.bin'
    tensors = tensor_files.read_file(file)
    torch_files.write(folder / name, {n: t.read() for n, t in tensors.items()})
    where |= dict.fromkeys(tensors, name)
  index = {'metadata': {}, 'weight_map': where}
  (folder / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
  return folder


def write_bitsandbytes(
  folder: pathlib.Path, llava: pathlib.Path, *, double: bool = True, skip=('lm_head',)
) -> dict[str, nf4.Nf4]:
  """The same network as transformers saves it in 4 bits; returns its linears."""
  folder.mkdir()
  folders.copy_files(llava, folder, ('config.json', *network_files.COMPANIONS))
  tensors, leaves = {}, {}
  for name, tensor in read_folder(llava).items():
    linear = re.search(r'(_proj|fc\d|mm_projector\.\d)\.weight$', name)
    if linear is None or any(text in name for text in skip):
      tensors[name] = tensor
      continue
    leaves[name] = nf4.quantize(tensor.astype(np.float16), double)
    parts = nf4.to_bitsandbytes(leaves[name])
    tensors |= {name + part.removeprefix('weight'): v for part, v in parts.items()}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return leaves


def write_adapter(folder: pathlib.Path, cfg=CFG, lora: LoraConfig = tiny.LORA, seed=3):
  """A PEFT adapter for a decoder of the given sizes."""
  rng = np.random.default_rng(seed)
  flat = {}
  for leaf in weight_table.weights(cfg):
    linear = leaf.name.split('/')[-2]
    if leaf.is_linear and linear in lora.targets:
      out, fan_in = leaf.shape
      count, stem = len(leaf.sources), leaf.name[:-2]
      flat[f'{stem}/a'] = rng.normal(size=(count, lora.rank, fan_in))
      flat[f'{stem}/b'] = rng.normal(size=(count, out, lora.rank))
  flat = {name: 0.2 * value.astype(np.float32) for name, value in flat.items()}
  peft_files.write(folder, flat, lora, 'elsewhere')
  return flat


def write_head(path: pathlib.Path, width: int = CFG.llama.width, seed: int = 4) -> dict:
  rng = np.random.default_rng(seed)
  values = {'w': rng.normal(size=width).astype(np.float32), 'b': np.float32(0.25)}
  head_files.write(path, values)
  return values


def write_projector(
  path: pathlib.Path, start: str, seed: int = 5, cfg=CFG
) -> dict[str, np.ndarray]:
  """A projector-only file; `start` is what its names begin with."""
  flat = {
    n: v for n, v in random_weights(seed, cfg).items() if n.startswith('projector/')
  }
  number = {'in': 0, 'out': 2}
  tensors = {}
  for name, value in flat.items():
    _, mine, own = name.split('/')
    theirs = {'w': 'weight', 'bias': 'bias'}[own]
    tensors[f'{start}mm_projector.{number[mine]}.{theirs}'] = value
  torch_files.write(path, tensors)
  return flat


def read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of one of our folders."""
  return {
    name: tensor.read()
    for file in sorted(folder.glob('*.safetensors'))
    for name, tensor in tensor_files.read_file(file).items()
  }


def without_joint() -> dict[str, np.ndarray]:
  """Our weights as foreign layouts keep them: without CLIP's joint embedding."""
  return {n: v for n, v in random_weights().items() if n != 'tower/projection/w'}


def assert_same(folder: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
  """One of our folders contains exactly these weights."""
  weights = read_folder(folder)
  assert weights.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(weights[name], value, name)
