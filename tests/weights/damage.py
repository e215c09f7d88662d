"""Checkpoints that a test breaks: edits, and the check that they are refused."""

import json

import pytest
import safetensors.numpy

from tests.weights import checkpoints
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.weights import (
  conversion,
  tensor_files,
  torch_files,
)
from vlm_rlaif_jax.weights.conversion import Request


def shards(folder):
  return sorted([*folder.glob('*model-*.safetensors'), *folder.glob('*model-*.bin')])


def refused(source, *parts, request=None):
  """One line that says all this, and nothing written."""
  out = source.parent / 'out'
  with pytest.raises(UserError) as caught:
    conversion.convert(source, out, request or Request())
  message = str(caught.value)
  assert '\n' not in message
  for text in parts:
    assert text in message, message
  assert not out.exists() and not out.with_name('out.part').exists()


def edit(path, change):
  """Rewrites one shard with other tensors."""
  tensors = {n: t.read() for n, t in tensor_files.read_file(path).items()}
  tensors = change(tensors)
  if path.suffix == '.bin':
    torch_files.write(path, tensors)
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
  safetensors.numpy.save_file(
    tensors(checkpoints.read_folder(source)), folder / 'model.safetensors'
  )
  fields = json.loads((source / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config(fields)))
  return folder


def without(*texts):
  return lambda tensors: {
    name: value for name, value in tensors.items() if not any(x in name for x in texts)
  }


def _has(path, text):
  return any(
    text in name and 'vision' not in name for name in tensor_files.read_file(path)
  )


VISION = 'model.vision_tower.vision_tower.vision_model.'


def on(root):
  return Request(base=str(root / 'ours'))
