"""The other side of `bench`: transformers + peft, and bitsandbytes on a CUDA device."""

import functools
import importlib.util
import platform
from typing import Any

from vlm_rlaif_jax.config.models import LlamaConfig, LoraConfig, VlmConfig

THEIRS = {
  **{name: f'self_attn.{name}_proj' for name in 'qkvo'},
  **{name: f'mlp.{name}_proj' for name in ('gate', 'up', 'down')},
}


def is_here() -> bool:
  """Whether torch sees a CUDA device and its packages are installed."""
  packages = ('torch', 'transformers', 'peft', 'bitsandbytes')
  if not all(importlib.util.find_spec(name) for name in packages):
    return False
  import torch

  return torch.cuda.is_available()


def versions() -> str:
  import importlib.metadata

  names = ('torch', 'transformers', 'peft', 'bitsandbytes')
  found = [f'{name} {importlib.metadata.version(name)}' for name in names]
  return ', '.join([*found, f'Python {platform.python_version()}'])


def network(cfg: LlamaConfig) -> Any:
  """A decoder of random weights, without ends of sequence."""
  import transformers

  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=cfg.vocab,
      hidden_size=cfg.width,
      intermediate_size=cfg.mlp,
      num_hidden_layers=cfg.layers,
      num_attention_heads=cfg.heads,
      num_key_value_heads=cfg.kv_heads,
      max_position_embeddings=cfg.max_positions,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=0,
    )
  )


def adapted(model, lora: LoraConfig, rate: float):
  """The network with adapters, and AdamW on them."""
  import peft
  import torch

  settings: Any = {'r': lora.rank, 'lora_alpha': lora.alpha}  # peft takes fractions
  targets = [THEIRS[name].split('.')[1] for name in lora.targets]
  model = peft.get_peft_model(
    model, peft.LoraConfig(**settings, target_modules=targets)
  )
  trained = [p for p in model.parameters() if p.requires_grad]
  return model, torch.optim.AdamW(trained, rate)


def sample(model, prompts, answer: int, **more):
  """`answer` tokens after each of the prompts `[B, T]`; more: for `generate`."""
  import torch

  return model.generate(
    input_ids=prompts,
    attention_mask=torch.ones_like(prompts),
    max_new_tokens=answer,
    min_new_tokens=answer,
    do_sample=True,
    top_k=0,
    **more,
  )


def packed(weight, device: str):
  """A `Linear4bit` in NF4 with double quantisation; weight: torch `[out, in]`."""
  import bitsandbytes
  import torch

  nn: Any = bitsandbytes.nn
  out, inp = weight.shape
  with torch.device(device):  # the weights that it begins with are drawn there
    linear = nn.Linear4bit(
      inp, out, bias=False, compute_dtype=torch.bfloat16, quant_type='nf4'
    )
  linear.weight = nn.Params4bit(
    weight.data, requires_grad=False, compress_statistics=True, quant_type='nf4'
  )
  return linear.to(device)


def in_nf4(decoder, device: str):
  """The decoder with the linears of its layers packed."""
  for layer in decoder.model.layers:
    for name in THEIRS.values():
      layer.set_submodule(name, packed(layer.get_submodule(name).weight, device))
  decoder.is_loaded_in_4bit = True  # peft asks
  return decoder


def product(out: int, inp: int, rows: int, times: int, device: str = 'cuda'):
  """A call that multiplies `[rows, inp]` by a packed weight some times, then waits."""
  import torch

  linear = packed(torch.randn(out, inp) * 0.02, device)
  x = torch.randn(rows, inp, dtype=torch.bfloat16, device=device)

  @torch.inference_mode()
  def run():
    for _ in range(times):
      linear(x)
    _wait(device)

  return run


def jobs(
  cfg: VlmConfig, lora: LoraConfig, ids, prompt: int, answer: int, batch: int, rows,
  device: str = 'cuda',
) -> dict:  # fmt: skip
  """name -> (a call, its tokens): decoding, and a LoRA step on `batch` rows of ids."""
  import torch

  decoder = in_nf4(network(cfg.llama).to(torch.bfloat16), device)
  model, optimizer = adapted(decoder.to(device), lora, 1e-4)
  ids = torch.from_numpy(ids).long().to(device)

  def train():
    model.train()
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16):
      model(input_ids=ids[:batch], labels=ids[:batch]).loss.backward()
    optimizer.step()
    _wait(device)

  @torch.inference_mode()
  def draw(count):
    model.eval()
    prompts = ids[:count, :prompt]
    with torch.autocast(device, torch.bfloat16):
      sample(model, prompts, answer)
    _wait(device)

  made: dict[str, tuple] = {
    f'decode, {count} rows': (functools.partial(draw, count), count * answer)
    for count in rows
  }
  made['LoRA step'] = (train, batch * ids.shape[1])
  return made


def _wait(device: str) -> None:
  import torch

  if device == 'cuda':
    torch.cuda.synchronize()
