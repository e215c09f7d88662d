"""A PEFT adapter that was initialized with PiSSA and saved as it is.

PEFT subtracts the initial adapter from the base weights, and does so again when it
loads the adapter. Added to the plain base, the adapter gives weights far from the
trained ones. Right: the trained weights, or one line that refuses `init_lora_weights`
by name. `plain` is an ordinary adapter, for comparison.

  python -m tests.cases.adapter_pissa OUT [CASE ...]
"""

import functools
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

from tests.cases import checkpoints, commands

TARGETS = r'.*language_model.*\.(q_proj|v_proj)'
WEIGHT = 'language_model.layers.0.self_attn.q_proj.weight'


def make(out: pathlib.Path, **init) -> tuple[pathlib.Path, pathlib.Path, np.ndarray]:
  """Writes a base and a trained adapter.

  Returns:
    Their folders, and one weight of the trained network.
  """
  tokenizer = checkpoints.byte_tokenizer()
  network = checkpoints.random_network(len(tokenizer))
  base, adapter = checkpoints.save(network, out / 'base', tokenizer), out / 'adapter'
  model = transformers.LlavaForConditionalGeneration.from_pretrained(
    base, dtype=torch.float32
  )
  torch.manual_seed(1)
  config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **init)
  adapted = peft.get_peft_model(model, config)
  with torch.no_grad():
    for name, value in adapted.named_parameters():
      if 'lora_' in name:
        value += 0.05 * torch.randn_like(value)  # in place of training
  shutil.rmtree(adapter, ignore_errors=True)
  adapted.save_pretrained(adapter)
  state = adapted.merge_and_unload().state_dict()
  return base, adapter, next(x.numpy() for n, x in state.items() if n.endswith(WEIGHT))


def check(out: pathlib.Path, **init) -> str:
  base, adapter, trained = make(out, **init)
  result = commands.convert(adapter, out / 'merged', '--to=hf', f'--base={base}')
  if result.returncode:
    field = {'init_lora_weights': 'init_lora_weights'}
    return commands.refused_naming(result, field) if init else commands.outcome(result)
  error = np.abs(checkpoints.tensor_of(out / 'merged', WEIGHT) - trained).max()
  if error < 1e-5:
    return ''
  return f'weights differ by up to {error:.2f}; their deviation is {trained.std():.2f}'


def cases(out: pathlib.Path) -> dict:
  pissa = functools.partial(check, out / 'pissa', init_lora_weights='pissa')
  return {'plain': lambda: check(out / 'plain'), 'pissa': pissa}


if __name__ == '__main__':
  commands.main(cases)
