"""Our speed beside a peer's, and beside what the arithmetic costs, in one run.

  python -m launch.bench tiny                    # against transformers + peft, on CPU
  python -m launch.bench tiny --json=tiny.json
  python -m launch.bench quant                   # the base in 16 and in 4 bits
  python -m launch.bench phases --config configs/ppo.py:7b    # beside their plan
  python -m launch.bench gpu --json=gpu.json     # ours and PyTorch's, on one card

`tiny` times the decoder of the tiny size with LoRA on every linear, in float32: a
training step, and sampling with a KV cache. Both sides work in turn in every round, the
peer with one thread and with all; the fastest round is reported. Needs the extra
[test]. `quant` times decoding and a LoRA step by residency of the base, on a GPU beside
transformers + peft + bitsandbytes and product by product. `phases`: see
`launch.bench_phases`; `gpu`: see `launch.bench_gpu`.
"""

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable

from absl import flags

from launch import bench_gpu, bench_peer, bench_phases, bench_quant, process
from vlm_rlaif_jax.config.build import UserError

_JSON = flags.DEFINE_string('json', '', 'also write the figures to this file')
_ROUNDS = flags.DEFINE_integer('rounds', 6, 'times that everything is measured', 1)
_SIZE = flags.DEFINE_enum('size', '7b', ('tiny', '7b'), 'gpu: of the decoder')
_MINUTES = flags.DEFINE_float('minutes', 30, 'gpu: for all items together', 0.1)

BATCH, LENGTH = 32, 155  # of the training step, in tokens
PROMPT, ANSWER = 96, 48  # of sampling, in tokens
SAMPLED = (1, 32)  # batch sizes of sampling
WORK = ('LoRA step', *(f'sample, batch {count}' for count in SAMPLED))


@process.one_line_errors
def main(argv) -> None:
  suites = {'tiny': tiny, 'quant': quant, 'phases': phases, 'gpu': gpu}
  if len(argv) != 2 or argv[1] not in suites:
    raise UserError(f'which? python -m launch.bench {" | ".join(suites)}')
  process.writable(_JSON.value, '--json')
  figures = suites[argv[1]]()
  if _JSON.value:
    with open(_JSON.value, 'w') as file:
      json.dump(figures, file, indent=2)


def quant() -> dict:
  """Residencies of the base, see `launch.bench_quant`."""
  process.start()
  return bench_quant.quant(_ROUNDS.value)


def phases() -> dict:
  """Phases of a stage at its own sizes, see `launch.bench_phases`."""
  return bench_phases.phases(_ROUNDS.value)


def gpu() -> dict:
  """Ours and PyTorch's on the card that is here, see `launch.bench_gpu`."""
  only = flags.FLAGS.only
  if unknown := set(only) - set(bench_gpu.ITEMS):
    known = ', '.join(bench_gpu.ITEMS)
    raise UserError(f'--only: {unknown.pop()!r} is none of {known}')
  return bench_gpu.gpu(_SIZE.value, only, _MINUTES.value, _JSON.value)


def tiny() -> dict:
  """A LoRA step and sampling, beside transformers + peft."""
  import importlib.metadata
  import importlib.util

  for name in ('torch', 'peft'):
    if importlib.util.find_spec(name) is None:
      raise UserError(f"bench: {name} is missing; pip install -e '.[test]'")
  version = importlib.metadata.version
  process.start()
  threads = sorted({1, len(os.sched_getaffinity(0))})
  times: dict[str, list[float]] = {}
  # A process each: the peer's idle threads were seen to halve our speed.
  with _Side(_ours) as ours, _Side(_theirs) as theirs:
    for number in range(_ROUNDS.value + 1):
      for name in WORK:
        for who, side, count in (
          ('ours', ours, 0),
          *((f'peer with {count} threads', theirs, count) for count in threads),
        ):
          seconds = side.time(name, count)
          if number:  # the first round compiles
            times.setdefault(f'{name}/{who}', []).append(seconds)
  best = {name: min(seconds) for name, seconds in times.items()}
  peak = _matmul_rate()

  packages = ('jax', 'torch', 'transformers', 'peft')
  print(
    f'tiny decoder, float32, {threads[-1]} cores, best of {_ROUNDS.value} rounds; '
    + ', '.join(f'{name} {version(name)}' for name in packages)
    + f', Python {platform.python_version()}'
  )
  figures = {'seconds': best, 'matmul_gflops': peak / 1e9}
  work = _flops()
  for name in WORK:
    mine = best[f'{name}/ours']
    peers = {k: v for k, v in best.items() if k.startswith(f'{name}/peer')}
    peer = min(peers, key=peers.__getitem__)
    floor = work[name] / peak
    figures[name] = {
      'ratio': peers[peer] / mine, 'peer': peer.split('/')[1], 'floor': floor / mine
    }  # fmt: skip
    print(
      f'{name:<22}{1e3 * mine:8.1f} ms   {peer.split("/")[1]} {1e3 * peers[peer]:8.1f} '
      f'ms   {peers[peer] / mine:5.2f}x   matmul floor {1e3 * floor:7.1f} ms'
      f' ({floor / mine:.0%})'
    )
  print(f'floor: multiply-adds of the matrices at {peak / 1e9:.0f} GFLOP/s, '
        'the rate of a 1024 x 1024 product in the same run')  # fmt: skip
  return figures


class _Side:
  """One contestant in a process of its own, that works when it is told to.

  Args:
    build: () -> {name: work}, and a way to set the number of threads.
  """

  def __init__(self, build):
    context = multiprocessing.get_context('spawn')
    self.pipe, other = context.Pipe()
    self.process = context.Process(target=_serve, args=(build, other), daemon=True)
    self.process.start()

  def time(self, name: str, threads: int) -> float:
    self.pipe.send((name, threads))
    return self.pipe.recv()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.process.terminate()


def _serve(build, pipe) -> None:
  works, set_threads = build()
  while True:
    name, threads = pipe.recv()
    set_threads(threads)
    time.sleep(0.5)  # the other side's threads may still be spinning
    works[name]()  # caches are the other side's
    clock = time.perf_counter()
    works[name]()
    pipe.send(time.perf_counter() - clock)


def _lora():
  from vlm_rlaif_jax.config.models import LoraConfig

  return LoraConfig(rank=32, alpha=32.0)


def _ours() -> tuple[dict, Callable]:
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from configs import models
  from vlm_rlaif_jax import decode
  from vlm_rlaif_jax.config.sections import Mesh, Optim
  from vlm_rlaif_jax.core import sharding
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.train import bases, layouts, optim, supervised

  cfg, lora = models.tiny(), _lora()
  mesh = sharding.make_mesh(Mesh(data=1), jax.devices()[:1])
  model = Vlm(cfg, lora)
  params = bases.init(cfg, jax.random.key(0))
  base = {'llama': params['llama']}
  adapter = bases.init_adapter(cfg, lora, jax.random.key(1))
  settings = Optim(learning_rate=1e-3)
  optimizer = optim.make_optimizer(settings)
  rng = np.random.default_rng(0)
  ids = rng.integers(3, cfg.llama.vocab, (BATCH, LENGTH), dtype=np.int32)
  batch = {
    'ids': jnp.asarray(ids),
    'target': jnp.ones((BATCH, LENGTH), bool),
    'tokens': jnp.zeros((BATCH, 1, cfg.llama.width)),  # no slot: text alone
  }
  trained = {'lora': adapter}
  where = layouts.trainable(cfg, lora, mesh, trained)
  held = {'state': layouts.start(trained, where, optimizer, 0, mesh)}
  step = supervised.program(
    lambda t, b, batch, key: supervised.loss(model, b, t, batch, key),
    optimizer,
    optim.learning_rate(settings, 1000),
    1,
    mesh,
    held['state'],
    base,
  )

  def train():
    held['state'], metrics = step(held['state'], base, batch)
    jax.block_until_ready(metrics)

  adapter = bases.init_adapter(cfg, lora, jax.random.key(1))
  sampling = decode.Sampling(ANSWER, eos=-1)
  draw = jax.jit(
    lambda params, lora, ids, visual, keys: decode.sample(
      model, {'params': params, 'lora': lora}, ids, ids != 0, visual, keys, sampling
    )
  )

  def sample(count):
    prompts = jnp.asarray(ids[:count, :PROMPT])
    keys = decode.example_keys(jax.random.key(0), jnp.arange(count))
    visual = jnp.zeros((count, 1, cfg.llama.width))
    jax.block_until_ready(draw(base, adapter, prompts, visual, keys))

  works = (train, *(functools.partial(sample, n) for n in SAMPLED))
  return dict(zip(WORK, works, strict=True)), lambda threads: None


def _theirs() -> tuple[dict, Callable]:
  import functools

  import torch

  from configs import models

  cfg = models.tiny().llama
  model, optimizer = bench_peer.adapted(bench_peer.network(cfg), _lora(), 1e-3)
  ids = torch.randint(3, cfg.vocab, (BATCH, LENGTH))

  def train():
    model.train()
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()

  def sample(count):
    model.eval()
    prompts = ids[:count, :PROMPT]
    with torch.inference_mode():
      made = bench_peer.sample(model, prompts, ANSWER)
    assert made.shape[1] == PROMPT + ANSWER

  works = (train, *(functools.partial(sample, n) for n in SAMPLED))
  return dict(zip(WORK, works, strict=True)), torch.set_num_threads


def _flops() -> dict:
  """Operations that each work needs, see `train/flops.py`."""
  from configs import models
  from vlm_rlaif_jax.train import flops

  cfg, lora = models.tiny().llama, _lora()
  prompt = flops.forward(cfg, lora, PROMPT)
  answer = flops.decode(cfg, lora, PROMPT, ANSWER)
  return {
    'LoRA step': BATCH * flops.training(cfg, lora, LENGTH, LENGTH)[0],
    **{f'sample, batch {n}': n * (prompt + answer) for n in SAMPLED},
  }


def _matmul_rate(size: int = 1024) -> float:
  """FLOP/s of a square float32 product, fastest of several."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size))
  product = jax.jit(lambda a, b: a @ b)
  calls = {'product': lambda: product(x, x).block_until_ready()}
  best = bench_quant.fastest(calls, 20)['product']
  return 2 * size**3 / best


if __name__ == '__main__':
  process.prepare()
  process.run(main)
