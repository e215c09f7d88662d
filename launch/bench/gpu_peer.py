"""PyTorch's side of `bench gpu`: transformers, peft, bitsandbytes, vLLM, attention.

Each item is a function of the size that calls `note`. Weights are random and made on
the device.
"""

import functools
import gc
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from launch.bench import peers
from launch.bench.gpu_process import attempt, note, serve
from launch.bench.gpu_shapes import LORA, ROUNDS, SHAPES, Shapes

CHECKPOINTING = {'use_reentrant': False}
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def wait() -> None:
  """Waits for the device."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def timed(
  call: Callable[[], Any], repeats: int = 1, rounds: int = ROUNDS, warm: int = 1
) -> float:
  """Returns the seconds of one call in the fastest round, after `warm` calls."""
  for _ in range(warm):
    call()
  wait()
  best = float('inf')
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(repeats):
      call()
    wait()
    best = min(best, (time.perf_counter() - start) / repeats)
  return best


def peak() -> dict[str, float]:
  """Returns the most memory in use since the last call, as a figure of a row."""
  if DEVICE != 'cuda':
    return {}
  used = torch.cuda.max_memory_allocated() / 1e9
  torch.cuda.reset_peak_memory_stats()
  return {'GB': used}


def random(*shape: int, requires_grad: bool = False) -> torch.Tensor:
  """Returns normal numbers in bf16 on the device."""
  return torch.randn(
    *shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=requires_grad
  )


def network(shapes: Shapes) -> Any:
  """Returns a decoder of random weights in bf16, made on the device."""
  torch.set_default_dtype(torch.bfloat16)
  try:
    with torch.device(DEVICE):
      return peers.network(shapes.llama)
  finally:
    torch.set_default_dtype(torch.float32)


def ceilings_and_attention(size: str) -> None:
  """Times a copy, a product, and attention without a model around it."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  _copy(shapes)
  n = shapes.matmul
  a, b = random(n, n), random(n, n)
  note('torch matmul', seconds=timed(lambda: a @ b, shapes.repeats), flops=2 * n**3)
  rows, heads, dim = shapes.train_rows, llama.heads, llama.head_dim
  for positions in (shapes.length, shapes.padded_length):
    shape = rows, heads, positions, dim
    q, k, v = (random(*shape, requires_grad=True) for _ in range(3))
    g = random(*shape)
    forward = 2 * positions**2 * dim * heads * rows
    for name in ('FLASH_ATTENTION', 'CUDNN_ATTENTION'):
      row = f'sdpa {name.split("_")[0].lower()}, T={positions}'
      attempt(row, functools.partial(_sdpa, row, name, (q, k, v), g, forward, shapes))


def _copy(shapes: Shapes) -> None:
  x = random(shapes.copied)
  y = torch.empty_like(x)
  seconds = timed(lambda: y.copy_(x), shapes.repeats)
  note('torch copy', seconds=seconds, bytes=2 * x.numel() * x.element_size())


def _sdpa(
  row: str,
  name: str,
  inputs: tuple[torch.Tensor, ...],
  g: torch.Tensor,
  forward: float,
  shapes: Shapes,
) -> None:
  from torch.nn.attention import SDPBackend, sdpa_kernel

  call = functools.partial(
    torch.nn.functional.scaled_dot_product_attention, *inputs, is_causal=True
  )
  with sdpa_kernel(getattr(SDPBackend, name)):
    note(row, seconds=timed(call, shapes.repeats), flops=forward)
    both = timed(lambda: call().backward(g), shapes.repeats)
    note(f'{row}, with gradient', seconds=both, flops=3.5 * forward)


def generate(size: str, cache: str = '') -> None:
  """Times transformers' generate with sampling; every response has the full length.

  First come a quarter of the steps, around the middle of the responses, from which the
  total is estimated; then all steps, which the deadline may cut off.

  Args:
    cache: transformers' `cache_implementation`; '' for its default.
  """
  shapes = SHAPES[size]
  model, response = network(shapes).eval(), shapes.response
  options = {'cache_implementation': cache} if cache else {}
  name = f'{cache} cache, compiled' if cache else 'generate'

  @torch.inference_mode()
  def run(prompt: int, steps: int) -> float:
    ids = torch.randint(3, shapes.llama.vocab, (shapes.rows, prompt)).to(DEVICE)
    start = time.perf_counter()
    peers.sample(model, ids, steps, **options)
    wait()
    return time.perf_counter() - start

  if not cache:  # a static cache is compiled for its own length
    few = 4
    middle = shapes.prompt + 3 * response // 8
    note('first call', seconds=run(shapes.prompt, few))
    short, reading = run(shapes.prompt, few), run(middle, few)
    quarter = run(middle, few + response // 4) - reading
    note(
      f'{name}, from a quarter of its steps',
      seconds=4 * quarter + short,
      rows=shapes.rows,
      positions=shapes.length,
      **{'ms a step': 4e3 * quarter / response},
    )
  else:
    note('first call', seconds=run(shapes.prompt, response))
  seconds = run(shapes.prompt, response)
  note(
    name,
    seconds=seconds,
    rows=shapes.rows,
    positions=shapes.length,
    **{'ms a step': 1e3 * seconds / response},
    **peak(),
  )


def vllm(size: str) -> None:
  """Times vLLM's sampling, with CUDA graphs; every response has the full length.

  It knows the network by its config alone, and makes the weights itself.
  """
  # Not a dependency: it runs where it is installed.
  from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

  shapes = SHAPES[size]
  with tempfile.TemporaryDirectory() as folder:
    peers.config(shapes.llama).save_pretrained(folder)
    start = time.perf_counter()
    engine = LLM(
      model=folder,
      load_format='dummy',  # random weights
      skip_tokenizer_init=True,
      dtype='bfloat16',
      max_model_len=shapes.padded_length,
      max_num_seqs=shapes.rows,
      enable_prefix_caching=False,
      seed=0,
    )
    note('vLLM, start', seconds=time.perf_counter() - start)
  options = {'temperature': 1.0, 'ignore_eos': True, 'detokenize': False}
  full = SamplingParams(max_tokens=shapes.response, **options)
  generator = torch.Generator().manual_seed(0)

  def run(settings: Any) -> float:
    ids = torch.randint(
      3, shapes.llama.vocab, (shapes.rows, shapes.prompt), generator=generator
    )
    prompts: Any = [{'prompt_token_ids': row} for row in ids.tolist()]
    start = time.perf_counter()
    answers = engine.generate(prompts, settings, use_tqdm=False)
    seconds = time.perf_counter() - start
    lengths = {len(answer.outputs[0].token_ids) for answer in answers}
    if lengths != {settings.max_tokens}:
      raise RuntimeError(f'vLLM answered with {sorted(lengths)} tokens')
    return seconds

  run(SamplingParams(max_tokens=4, **options))  # the first call
  seconds = min(run(full) for _ in range(2))
  note(
    'vLLM',
    seconds=seconds,
    rows=shapes.rows,
    positions=shapes.length,
    **{'ms a step': 1e3 * seconds / shapes.response},
  )


def peft(size: str) -> None:
  """Times a LoRA step on a bf16 base: with activations recomputed, then stored."""
  shapes = SHAPES[size]
  model, optimizer = peers.adapted(network(shapes), LORA, 1e-4)
  attempt('peft, checkpointing', lambda: _checkpointed(model, optimizer, shapes))
  model.gradient_checkpointing_disable()
  attempt('peft, bf16', lambda: _train('peft, bf16', model, optimizer, shapes))


def _checkpointed(
  model: Any, optimizer: Any, shapes: Shapes, name: str = 'peft, checkpointing'
) -> None:
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
  model.enable_input_require_grads()
  _train(name, model, optimizer, shapes)


def _train(name: str, model: Any, optimizer: Any, shapes: Shapes) -> None:
  from vlm_rlaif_jax.train.profiling import flops

  gc.collect()
  length, rows = shapes.length, shapes.train_rows
  ids = torch.randint(3, shapes.llama.vocab, (rows, length)).to(DEVICE)
  labels = ids.clone()
  labels[:, : shapes.prompt] = -100
  model.train()

  def step() -> None:
    with torch.autocast(DEVICE, torch.bfloat16):
      model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

  seconds = timed(step, warm=2)
  needed, _ = flops.training(shapes.llama, LORA, length, shapes.response)
  note(
    name,
    seconds=seconds,
    flops=rows * needed,
    rows=rows,
    positions=length,
    **peak(),
  )


def qlora(size: str) -> None:
  """Times a LoRA step on a base in NF4, with peft and bitsandbytes."""
  shapes = SHAPES[size]
  decoder = peers.in_nf4(network(shapes), DEVICE)
  gc.collect()
  if DEVICE == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  model, optimizer = peers.adapted(decoder, LORA, 1e-4)
  name = 'QLoRA, NF4, checkpointing'
  attempt(name, lambda: _checkpointed(model, optimizer, shapes, name))
  model.gradient_checkpointing_disable()
  attempt('QLoRA, NF4', lambda: _train('QLoRA, NF4', model, optimizer, shapes))


ITEMS: dict[str, Callable[[str], None]] = {
  'torch': ceilings_and_attention,
  'generate': generate,
  'generate_compiled': functools.partial(generate, cache='static'),
  'peft': peft,
  'qlora': qlora,
  'vllm': vllm,
}

if __name__ == '__main__':
  import transformers  # noqa: F401  # loaded before the item's turn

  serve(ITEMS)
