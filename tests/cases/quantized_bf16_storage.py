"""NF4 weights that bitsandbytes stores as bfloat16, as QLoRA with FSDP needs them.

`bnb_4bit_quant_storage` packs the same bytes, two to a number, in other shapes.
Right: the same weights as from bytes.

  python -m tests.cases.quantized_bf16_storage OUT
"""

import json
import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import safetensors.torch
import torch

from tests.cases import checkpoints, commands

WEIGHT = 'language_model.layers.0.self_attn.q_proj.weight'


def make(out: pathlib.Path, storage: torch.dtype) -> pathlib.Path:
  """Writes a checkpoint whose decoder has its linears in NF4, double quantized."""
  tokenizer = checkpoints.byte_tokenizer()
  network = checkpoints.random_network(len(tokenizer)).half()
  folder = checkpoints.save(network, out, tokenizer)
  path, tensors = folder / 'model.safetensors', {}
  for name, value in safetensors.torch.load_file(path).items():
    if 'language_model' in name and name.endswith('_proj.weight'):
      packed, state = bnb.quantize_4bit(
        value.contiguous(),
        blocksize=64,
        compress_statistics=True,
        quant_type='nf4',
        quant_storage=storage,
      )
      for part, tensor in state.as_dict(packed=True).items():
        tensors[f'{name}.{part}'] = tensor.contiguous()
      value = packed
    tensors[name] = value
  safetensors.torch.save_file(tensors, path, {'format': 'pt'})
  config = json.loads((folder / 'config.json').read_text())
  config['quantization_config'] = {
    'quant_method': 'bitsandbytes',
    'load_in_4bit': True,
    'bnb_4bit_quant_type': 'nf4',
    'bnb_4bit_use_double_quant': True,
    'bnb_4bit_compute_dtype': 'bfloat16',
    'bnb_4bit_quant_storage': str(storage).removeprefix('torch.'),
  }
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def check(out: pathlib.Path) -> str:
  weights = []
  for name, storage in (('uint8', torch.uint8), ('bfloat16', torch.bfloat16)):
    (out / name).mkdir(exist_ok=True)
    network = make(out / name / 'network', storage)
    result = commands.convert_twice(network, out / name, '--to=hf')
    if result.returncode:
      return (
        f'{name}: {commands.outcome(result)}; right: the same weights as from bytes'
      )
    weights.append(checkpoints.tensor_of(out / name / 'export', WEIGHT))
  error = np.abs(weights[0] - weights[1]).max()
  return f'weights differ by up to {error:.3f}' if error else ''


def cases(out: pathlib.Path) -> dict:
  return {'bfloat16': lambda: check(out)}


if __name__ == '__main__':
  commands.main(cases)
