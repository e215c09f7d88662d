"""The peers: transformers + peft, and bitsandbytes on a CUDA device."""

import functools
import importlib.util
import platform
from collections.abc import Callable, Sequence
from typing import Any

from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig, VlmConfig

MODULES = {
  **{name: f'self_attn.{name}_proj' for name in 'qkvo'},
  **{name: f'mlp.{name}_proj' for name in ('gate', 'up', 'down')},
}


def is_here() -> bool:
  """Returns whether torch sees a CUDA device and the packages are installed."""
  packages = ('torch', 'transformers', 'peft', 'bitsandbytes')
  if not all(importlib.util.find_spec(name) for name in packages):
    return False
  import torch

  return torch.cuda.is_available()


def versions() -> str:
  """Returns the peers' packages with their versions."""
  import importlib.metadata

  names = ('torch', 'transformers', 'peft', 'bitsandbytes')
  lines = [f'{name} {importlib.metadata.version(name)}' for name in names]
  return ', '.join([*lines, f'Python {platform.python_version()}'])


def network(cfg: LlamaConfig) -> Any:
  """Returns a decoder of random weights that never ends a sequence."""
  import transformers

  return transformers.LlamaForCausalLM(config(cfg))


def config(cfg: LlamaConfig) -> Any:
  """Returns transformers' config of a decoder that never ends a sequence."""
  import transformers

  return transformers.LlamaConfig(
    architectures=['LlamaForCausalLM'],
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


def adapted(model: Any, lora: LoraConfig, rate: float) -> tuple[Any, Any]:
  """Returns the network with adapters, and AdamW on them."""
  import peft
  import torch

  settings: Any = {'r': lora.rank, 'lora_alpha': lora.alpha}  # peft takes fractions
  targets = [MODULES[name].split('.')[1] for name in lora.targets]
  model = peft.get_peft_model(
    model, peft.LoraConfig(**settings, target_modules=targets)
  )
  trained = [p for p in model.parameters() if p.requires_grad]
  return model, torch.optim.AdamW(trained, rate)


def sample(model: Any, prompts: Any, response: int, **options: Any) -> Any:
  """Samples `response` tokens after each of the prompts, torch `[B, T]`.

  Args:
    options: further arguments of `generate`.
  """
  import torch

  return model.generate(
    input_ids=prompts,
    attention_mask=torch.ones_like(prompts),
    max_new_tokens=response,
    min_new_tokens=response,
    do_sample=True,
    top_k=0,
    **options,
  )


def packed(weight: Any, device: str) -> Any:
  """Returns a `Linear4bit` in NF4 with double quantization, of torch `[out, in]`."""
  import bitsandbytes
  import torch

  nn: Any = bitsandbytes.nn
  out, inp = weight.shape
  with torch.device(device):  # its initial weights are drawn there
    linear = nn.Linear4bit(
      inp, out, bias=False, compute_dtype=torch.bfloat16, quant_type='nf4'
    )
  linear.weight = nn.Params4bit(
    weight.data, requires_grad=False, compress_statistics=True, quant_type='nf4'
  )
  return linear.to(device)


def in_nf4(decoder: Any, device: str) -> Any:
  """Packs the linears of the decoder's layers, and returns the decoder."""
  for layer in decoder.model.layers:
    for name in MODULES.values():
      layer.set_submodule(name, packed(layer.get_submodule(name).weight, device))
  decoder.is_loaded_in_4bit = True  # peft reads it
  return decoder


def product(
  out: int, inp: int, rows: int, times: int, device: str = 'cuda'
) -> Callable[[], None]:
  """Returns a call that multiplies `[rows, inp]` by a packed weight, then waits."""
  import torch

  linear = packed(torch.randn(out, inp) * 0.02, device)
  x = torch.randn(rows, inp, dtype=torch.bfloat16, device=device)

  @torch.inference_mode()
  def run():
    for _ in range(times):
      linear(x)
    _wait(device)

  return run


def workloads(
  cfg: VlmConfig, lora: LoraConfig, ids: Any, prompt: int, response: int, batch: int,
  rows: Sequence[int], device: str = 'cuda',
) -> dict[str, tuple[Callable[[], None], int]]:  # fmt: skip
  """Returns name -> (a call, its tokens): decoding, and a LoRA step.

  Args:
    ids: `int32[B, T]`; decoding reads the first `prompt` of a row.
    batch: rows of ids in the LoRA step.
    rows: batch sizes of decoding.
  """
  import torch

  decoder = in_nf4(network(cfg.llama).to(torch.bfloat16), device)
  model, optimizer = adapted(decoder.to(device), lora, 1e-4)
  ids = torch.from_numpy(ids).long().to(device)

  def train() -> None:
    model.train()
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16):
      model(input_ids=ids[:batch], labels=ids[:batch]).loss.backward()
    optimizer.step()
    _wait(device)

  @torch.inference_mode()
  def decode(count: int) -> None:
    model.eval()
    prompts = ids[:count, :prompt]
    with torch.autocast(device, torch.bfloat16):
      sample(model, prompts, response)
    _wait(device)

  calls: dict[str, tuple] = {
    f'decode, {count} rows': (functools.partial(decode, count), count * response)
    for count in rows
  }
  calls['LoRA step'] = (train, batch * ids.shape[1])
  return calls


def _wait(device: str) -> None:
  import torch

  if device == 'cuda':
    torch.cuda.synchronize()
