"""Residencies of the base: decoding and a LoRA step in tokens a second, and bytes.

One decoder of a few layers, with LoRA on every linear; all residencies work in turn in
every round, and the fastest round counts. On a GPU the layers are those of LLaMA 7B,
products are timed one by one too, and transformers + peft + bitsandbytes take part in
the same rounds where torch sees the GPU.
"""

import functools
import platform
import time
from collections.abc import Callable, Hashable
from typing import Any

from launch import process
from launch.bench import peers
from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig, VlmConfig

BATCH, LENGTH = 4, 64  # of the training step, in tokens
PROMPT, RESPONSE = 32, 32  # of decoding, in tokens
ROWS = (1, 8, 32)  # batch sizes of decoding
RESIDENCIES = ('native', 'nf4', 'nf4_bf16', 'int4')
LORA = LoraConfig(rank=16, alpha=16.0)
PEER = 'bitsandbytes'
PRODUCT, PRODUCT_ROWS = (11008, 4096), (1, 8, 32, 128, 2048)
REPEATS = 20  # of a product in one timing


def quant(rounds: int) -> dict:
  """Prints and returns tokens a second and bytes, by residency and workload."""
  process.start()
  import jax

  # Workloads: (who, name) -> (a call, the tokens that it computes)
  cfg = _config()
  workloads, summaries = {}, {}
  for residency in RESIDENCIES:
    calls, summaries[residency] = _workloads(cfg, residency)
    workloads |= {(residency, name): call for name, call in calls.items()}
  with_peer = _on_gpu() and peers.is_here()
  if with_peer:
    calls = peers.workloads(cfg, LORA, _ids(cfg), PROMPT, RESPONSE, BATCH, ROWS)
    workloads |= {(PEER, name): call for name, call in calls.items()}

  # Time
  best = fastest({key: call for key, (call, _) in workloads.items()}, rounds)
  rates = {key: tokens / best[key] for key, (_, tokens) in workloads.items()}

  # Table
  print(
    f'decoder of {cfg.llama.layers} x {cfg.llama.width}, {cfg.dtype}, '
    f'{jax.devices()[0].device_kind}, best of {rounds} rounds; jax {jax.__version__}, '
    f'Python {platform.python_version()}; tokens a second'
  )
  if with_peer:
    print(f'{PEER}: NF4 with double quantization; {peers.versions()}')
  names = list(dict.fromkeys(name for _, name in workloads))
  print(f'{"":<12}{"linears":>10}' + ''.join(f'{name:>18}' for name in names))
  figures = {}
  for who in dict.fromkeys(who for who, _ in workloads):
    row = {name: rates[who, name] for name in names}
    summary = summaries.get(who, {})
    figures[who] = {**summary, 'tokens_per_second': row}
    nbytes = f'{summary["linear_bytes"] / 1e6:.1f} MB' if summary else ''
    print(f'{who:<12}{nbytes:>10}' + ''.join(f'{r:18,.0f}' for r in row.values()))
  if _on_gpu():
    figures['products'] = _products(rounds, with_peer)
  return figures


def fastest(
  calls: dict[Hashable, Callable[[], Any]], rounds: int
) -> dict[Hashable, float]:
  """Returns the seconds of the fastest round of each; the first compiles, uncounted."""
  best: dict[Hashable, float] = {}
  for number in range(rounds + 1):
    for key, call in calls.items():
      start = time.perf_counter()
      call()
      if number:
        best[key] = min(time.perf_counter() - start, best.get(key, float('inf')))
  return best


def _products(rounds: int, with_peer: bool) -> dict:
  """Returns microseconds of `[rows, in] x [out, in]`, by who and by rows."""
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.core.quant import nf4
  from vlm_rlaif_jax.core.quant.product import product

  out, inp = PRODUCT
  weight = 0.02 * jax.random.normal(jax.random.key(0), PRODUCT)

  def plain(x, w):
    return jnp.einsum('ri,oi->ro', x, w)

  kinds = {
    'bfloat16': (plain, weight.astype('bfloat16')),
    'nf4': (product, nf4.quantize(weight)),
  }

  def repeated(function):
    """Each product waits for the one before: they are timed, not their launching."""

    @jax.jit
    def run(x, w):
      def once(_, x):
        return jnp.minimum(x, jnp.max(function(x, w)))

      return jax.lax.fori_loop(0, REPEATS, once, x)

    return run

  def call(run, x, w):
    jax.block_until_ready(run(x, w))

  calls = {}
  for rows in PRODUCT_ROWS:
    x = jnp.ones((rows, inp), 'bfloat16')
    for who, (function, w) in kinds.items():
      calls[who, rows] = functools.partial(call, repeated(function), x, w)
    if with_peer:
      calls[PEER, rows] = peers.product(out, inp, rows, REPEATS)
  best = fastest(calls, rounds)

  print(f'product with [{out}, {inp}], microseconds, by rows')
  print(f'{"":<12}' + ''.join(f'{rows:>10}' for rows in PRODUCT_ROWS))
  table = {}
  for who in dict.fromkeys(who for who, _ in calls):
    table[who] = {rows: 1e6 * best[who, rows] / REPEATS for rows in PRODUCT_ROWS}
    print(f'{who:<12}' + ''.join(f'{t:10.1f}' for t in table[who].values()))
  return table


def _on_gpu() -> bool:
  import jax

  return jax.default_backend() == 'gpu'


def _config() -> VlmConfig:
  """Returns a decoder that the default device runs in seconds."""
  import jax

  layers = (
    LlamaConfig(vocab=4096, layers=4)
    if _on_gpu()
    else LlamaConfig(
      vocab=4096, width=512, mlp=1408, layers=2, heads=8, kv_heads=8, head_dim=64
    )
  )
  return VlmConfig(
    name='bench',
    llama=layers,
    dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
    remat='none',
  )


def _ids(cfg: VlmConfig):
  """Returns random ids, `int32[rows, LENGTH]`."""
  import numpy as np

  rng = np.random.default_rng(0)
  return rng.integers(3, cfg.llama.vocab, (max(ROWS), LENGTH), dtype=np.int32)


def _workloads(cfg: VlmConfig, residency: Any) -> tuple[dict, dict]:
  """Returns name -> (a call, its tokens), and the base's summary by residency."""
  import jax
  import numpy as np

  from launch.bench import ours
  from vlm_rlaif_jax.core import sharding, trees
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.settings.sections import MeshConfig, OptimConfig, QuantConfig
  from vlm_rlaif_jax.weights import network_shapes, placement

  ids, model = _ids(cfg), Vlm(cfg, LORA)
  config = QuantConfig(residency=residency)
  rng = np.random.default_rng(0)
  shapes = trees.flatten(network_shapes.abstract_params(cfg)['llama'])
  llama = {
    name: np.ones(x.shape, np.float32)
    if name.endswith('scale')
    else rng.normal(0, 0.02, x.shape).astype(np.float32)
    for name, x in shapes.items()
  }
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  params = {'llama': trees.unflatten(llama)}
  base = placement.on_device(params, cfg, mesh, quant=config)
  train = ours.training_call(model, base, ids[:BATCH], mesh, OptimConfig())
  decode = ours.sampling_call(model, base, ids, PROMPT, RESPONSE)
  calls: dict[str, tuple] = {
    f'decode, {rows} rows': (functools.partial(decode, rows), rows * RESPONSE)
    for rows in ROWS
  }
  calls['LoRA step'] = (train, BATCH * LENGTH)
  return calls, placement.base_summary(base, config)
