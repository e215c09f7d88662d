"""PyTorch's side of `bench gpu`: transformers, peft, bitsandbytes, and its attention.

The shapes are ours (`bench_gpu_ours.SHAPES`), written again here so that no JAX has to
be loaded: a test holds them together. Weights are random and made on the device.
"""

import dataclasses
import functools
import gc
import time

import torch

from launch import bench_peer
from launch.bench_gpu import attempt, note, serve
from vlm_rlaif_jax.config.models import LlamaConfig, LoraConfig

ROUNDS = 3
LORA = LoraConfig()
CHECKPOINTED = {'use_reentrant': False}


@dataclasses.dataclass(frozen=True)
class Shapes:
  llama: LlamaConfig
  rows: int = 32
  prompt: int = 753
  answer: int = 896
  train_rows: int = 4
  matmul: int = 8192
  copied: int = 1 << 30
  repeats: int = 10


SHAPES = {
  '7b': Shapes(LlamaConfig()),
  'tiny': Shapes(
    LlamaConfig(
      vocab=512, width=128, mlp=256, layers=2, heads=2, kv_heads=2, head_dim=64
    ),
    rows=2,
    prompt=97,
    answer=48,
    train_rows=2,
    matmul=256,
    copied=1 << 20,
    repeats=1,
  ),
}
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def wait() -> None:
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def timed(call, repeats: int = 1, rounds: int = ROUNDS, warm: int = 1) -> float:
  """Seconds of one call in the fastest round."""
  for _ in range(warm):
    call()
  wait()
  best = float('inf')
  for _ in range(rounds):
    clock = time.perf_counter()
    for _ in range(repeats):
      call()
    wait()
    best = min(best, (time.perf_counter() - clock) / repeats)
  return best


def peak() -> dict:
  if DEVICE != 'cuda':
    return {}
  used = torch.cuda.max_memory_allocated() / 1e9
  torch.cuda.reset_peak_memory_stats()
  return {'GB': used}


def random(*shape: int, **more):
  return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16, **more)


def network(shapes: Shapes):
  """A decoder of random weights in bf16, made where it will be."""
  torch.set_default_dtype(torch.bfloat16)
  try:
    with torch.device(DEVICE):
      return bench_peer.network(shapes.llama)
  finally:
    torch.set_default_dtype(torch.float32)


def alone(size: str) -> None:
  """Ceilings, and attention without a model around it."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  _copy(shapes)
  n = shapes.matmul
  a, b = random(n, n), random(n, n)
  note('torch matmul', seconds=timed(lambda: a @ b, shapes.repeats), flops=2 * n**3)
  rows, heads, dim = shapes.train_rows, llama.heads, llama.head_dim
  length = shapes.prompt + shapes.answer
  for positions in (length, -(-length // 128) * 128):
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


def _sdpa(row, name, inputs, g, forward, shapes) -> None:
  from torch.nn.attention import SDPBackend, sdpa_kernel

  call = functools.partial(
    torch.nn.functional.scaled_dot_product_attention, *inputs, is_causal=True
  )
  with sdpa_kernel(getattr(SDPBackend, name)):
    note(row, seconds=timed(call, shapes.repeats), flops=forward)
    both = timed(lambda: call().backward(g), shapes.repeats)
    note(f'{row}, with gradient', seconds=both, flops=3.5 * forward)


def generate(size: str, how: str = '') -> None:
  """transformers' generate with sampling: all rows, every answer of full length.

  First a quarter of the steps around the middle of the answers, from which the whole is
  estimated; then the whole, which the deadline may cut off.
  """
  shapes = SHAPES[size]
  model, answer = network(shapes).eval(), shapes.answer
  more = {'cache_implementation': how} if how else {}
  name = f'{how} cache, compiled' if how else 'generate'

  @torch.inference_mode()
  def run(prompt, steps):
    ids = torch.randint(3, shapes.llama.vocab, (shapes.rows, prompt)).to(DEVICE)
    clock = time.perf_counter()
    bench_peer.sample(model, ids, steps, **more)
    wait()
    return time.perf_counter() - clock

  if not how:  # a static cache is compiled for its own length
    few = 4
    note('first call', seconds=run(shapes.prompt, few))
    start, reading = run(shapes.prompt, few), run(shapes.prompt + 3 * answer // 8, few)
    some = run(shapes.prompt + 3 * answer // 8, few + answer // 4) - reading
    note(
      f'{name}, from a quarter of its steps',
      seconds=4 * some + start,
      rows=shapes.rows,
      **{'ms a step': 4e3 * some / answer},
    )
  else:
    note('first call', seconds=run(shapes.prompt, answer))
  best = run(shapes.prompt, answer)
  note(name, seconds=best, rows=shapes.rows, **{'ms a step': 1e3 * best / answer},
       **peak())  # fmt: skip


def peft(size: str) -> None:
  """A LoRA step on a bf16 base: activations kept, and then recomputed."""
  shapes = SHAPES[size]
  model, optimizer = bench_peer.adapted(network(shapes), LORA, 1e-4)
  attempt('peft, checkpointing', lambda: _checkpointed(model, optimizer, shapes))
  model.gradient_checkpointing_disable()
  attempt('peft, bf16', lambda: _train('peft, bf16', model, optimizer, shapes))


def _checkpointed(model, optimizer, shapes, name='peft, checkpointing') -> None:
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTED)
  model.enable_input_require_grads()
  _train(name, model, optimizer, shapes)


def _train(name: str, model, optimizer, shapes: Shapes) -> None:
  from vlm_rlaif_jax.train import flops

  gc.collect()
  length, rows = shapes.prompt + shapes.answer, shapes.train_rows
  ids = torch.randint(3, shapes.llama.vocab, (rows, length)).to(DEVICE)
  labels = ids.clone()
  labels[:, : shapes.prompt] = -100
  model.train()

  def step():
    with torch.autocast(DEVICE, torch.bfloat16):
      model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

  seconds = timed(step, warm=2)
  needed, _ = flops.training(shapes.llama, LORA, length, shapes.answer)
  note(name, seconds=seconds, flops=rows * needed, rows=rows, **peak())


def qlora(size: str) -> None:
  """A LoRA step on a base in NF4, as peft and bitsandbytes make it."""
  shapes = SHAPES[size]
  decoder = bench_peer.in_nf4(network(shapes), DEVICE)
  gc.collect()
  if DEVICE == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  model, optimizer = bench_peer.adapted(decoder, LORA, 1e-4)
  name = 'QLoRA, NF4, checkpointing'
  attempt(name, lambda: _checkpointed(model, optimizer, shapes, name))
  model.gradient_checkpointing_disable()
  attempt('QLoRA, NF4', lambda: _train('QLoRA, NF4', model, optimizer, shapes))


WORK = {
  'torch': alone,
  'generate': generate,
  'generate_compiled': functools.partial(generate, how='static'),
  'peft': peft,
  'qlora': qlora,
}

if __name__ == '__main__':
  import transformers  # noqa: F401  # loaded before the item's turn

  serve(WORK)
