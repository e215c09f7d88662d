"""The tiny size's decoder against transformers + peft: a LoRA step, and sampling.

LoRA is on every linear, in float32, on CPU. Both sides work in turn in every round, the
peer with one thread and with all; the fastest round is reported. Needs the extra
[test].
"""

import functools
import importlib.metadata
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import platform
import time
from collections.abc import Callable

from launch import process
from launch.bench import peers
from launch.bench.quant import fastest
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.models import LoraConfig

BATCH, LENGTH = 32, 155  # of the training step, in tokens
PROMPT, RESPONSE = 96, 48  # of sampling, in tokens
SAMPLE_BATCHES = (1, 32)
WORKLOADS = ('LoRA step', *(f'sample, batch {count}' for count in SAMPLE_BATCHES))
LORA = LoraConfig(rank=32, alpha=32.0)
# name -> the workload, and a function that sets the number of threads
Workloads = tuple[dict[str, Callable[[], None]], Callable[[int], None]]


def tiny(rounds: int) -> dict:
  """Prints and returns the seconds of both sides, and their ratio, by workload."""
  for name in ('torch', 'peft'):
    if importlib.util.find_spec(name) is None:
      raise UserError(f"bench: {name} is missing; pip install -e '.[test]'")
  process.start()
  threads = sorted({1, len(os.sched_getaffinity(0))})
  best = _measure(rounds, threads)
  peak = _matmul_rate()

  version = importlib.metadata.version
  packages = ('jax', 'torch', 'transformers', 'peft')
  print(
    f'tiny decoder, float32, {threads[-1]} cores, best of {rounds} rounds; '
    + ', '.join(f'{name} {version(name)}' for name in packages)
    + f', Python {platform.python_version()}'
  )
  figures = {'seconds': best, 'matmul_gflops': peak / 1e9}
  flops = _flops()
  for name in WORKLOADS:
    ours = best[f'{name}/ours']
    peers_best = {k: v for k, v in best.items() if k.startswith(f'{name}/peer')}
    peer = min(peers_best, key=peers_best.__getitem__)
    ratio, floor = peers_best[peer] / ours, flops[name] / peak
    label = peer.split('/')[1]
    figures[name] = {'ratio': ratio, 'peer': label, 'floor': floor / ours}
    print(
      f'{name:<22}{1e3 * ours:8.1f} ms   {label} {1e3 * peers_best[peer]:8.1f} '
      f'ms   {ratio:5.2f}x   matmul floor {1e3 * floor:7.1f} ms ({floor / ours:.0%})'
    )
  print(
    f'floor: multiply-adds of the matrices at {peak / 1e9:.0f} GFLOP/s, '
    'the rate of a 1024 x 1024 product in the same run'
  )
  return figures


def _measure(rounds: int, threads: list[int]) -> dict[str, float]:
  """Returns the fastest seconds by 'workload/side'; the first round is not counted."""
  times: dict[str, list[float]] = {}
  # A process each: the peer's idle threads were measured to halve our speed.
  with Contender(_ours) as ours, Contender(_peer) as peer:
    sides = [('ours', ours, 0)]
    sides += [(f'peer with {count} threads', peer, count) for count in threads]
    for number in range(rounds + 1):
      for name in WORKLOADS:
        for label, contender, count in sides:
          seconds = contender.time(name, count)
          if number:  # the first round compiles
            times.setdefault(f'{name}/{label}', []).append(seconds)
  return {name: min(seconds) for name, seconds in times.items()}


class Contender:
  """One side of the comparison in a process of its own, which works on request.

  Args:
    build: makes the workloads, in that process.
  """

  def __init__(self, build: Callable[[], Workloads]):
    context = multiprocessing.get_context('spawn')
    self.pipe, other = context.Pipe()
    self.process = context.Process(target=_serve, args=(build, other), daemon=True)
    self.process.start()

  def time(self, name: str, threads: int) -> float:
    """Returns the seconds of one run of a workload."""
    self.pipe.send((name, threads))
    return self.pipe.recv()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.process.terminate()


def _serve(
  build: Callable[[], Workloads], pipe: multiprocessing.connection.Connection
) -> None:
  workloads, set_threads = build()
  while True:
    name, threads = pipe.recv()
    set_threads(threads)
    time.sleep(0.5)  # the other side's threads may still be spinning
    workloads[name]()  # caches are the other side's
    start = time.perf_counter()
    workloads[name]()
    pipe.send(time.perf_counter() - start)


def _workloads(train: Callable[[], None], sample: Callable[[int], None]) -> dict:
  calls = [train, *(functools.partial(sample, count) for count in SAMPLE_BATCHES)]
  return dict(zip(WORKLOADS, calls, strict=True))


def _ours() -> Workloads:
  import jax
  import numpy as np

  from configs import models
  from launch.bench import ours
  from vlm_rlaif_jax.core import sharding
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.settings.sections import MeshConfig, OptimConfig
  from vlm_rlaif_jax.weights import network_shapes

  cfg = models.tiny()
  model = Vlm(cfg, LORA)
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  base = {'llama': network_shapes.init(cfg, jax.random.key(0))['llama']}
  rng = np.random.default_rng(0)
  ids = rng.integers(3, cfg.llama.vocab, (BATCH, LENGTH), dtype=np.int32)
  train = ours.training_call(model, base, ids, mesh, OptimConfig(learning_rate=1e-3))
  sample = ours.sampling_call(model, base, ids, PROMPT, RESPONSE)
  return _workloads(train, sample), _ignore_threads


def _ignore_threads(count: int) -> None:
  del count  # XLA's are set when its process starts: all of them


def _peer() -> Workloads:
  import torch

  from configs import models

  cfg = models.tiny().llama
  model, optimizer = peers.adapted(peers.network(cfg), LORA, 1e-3)
  ids = torch.randint(3, cfg.vocab, (BATCH, LENGTH))

  def train() -> None:
    model.train()
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()

  def sample(count: int) -> None:
    model.eval()
    with torch.inference_mode():
      output = peers.sample(model, ids[:count, :PROMPT], RESPONSE)
    assert output.shape[1] == PROMPT + RESPONSE

  return _workloads(train, sample), torch.set_num_threads


def _flops() -> dict[str, float]:
  """Returns the operations of each workload, see `train.profiling.flops`."""
  from configs import models
  from vlm_rlaif_jax.train.profiling import flops

  cfg = models.tiny().llama
  prompt = flops.forward(cfg, LORA, PROMPT)
  response = flops.decode(cfg, LORA, PROMPT, RESPONSE)
  return {
    'LoRA step': BATCH * flops.training(cfg, LORA, LENGTH, LENGTH)[0],
    **{f'sample, batch {n}': n * (prompt + response) for n in SAMPLE_BATCHES},
  }


def _matmul_rate(size: int = 1024) -> float:
  """Returns the FLOP/s of a square float32 product, the fastest of several."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size))
  product = jax.jit(jnp.matmul)

  def call() -> None:
    product(x, x).block_until_ready()

  return 2 * size**3 / fastest({'product': call}, 20)['product']
