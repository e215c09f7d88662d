"""The base held in each way: decoding and a LoRA step in tokens a second, and bytes.

One decoder of a few layers, with LoRA on every linear; all ways work in turn in every
round, and the fastest round counts. On a GPU the layers are those of LLaMA 7B, products
are timed one by one too, and transformers + peft + bitsandbytes take part in the same
rounds where torch sees the GPU.
"""

import functools
import platform
import time

from launch import bench_peer
from vlm_rlaif_jax.weights import adapters, network_shapes, placement

BATCH, LENGTH = 4, 64  # of the training step, in tokens
PROMPT, ANSWER = 32, 32  # of decoding, in tokens
ROWS = (1, 8, 32)  # batch sizes of decoding
RESIDENCIES = ('native', 'nf4', 'nf4_bf16', 'int4')
PEER = 'bitsandbytes'
PRODUCT, PRODUCT_ROWS = (11008, 4096), (1, 8, 32, 128, 2048)
REPEATS = 20  # of a product in one timing


def quant(rounds: int) -> dict:
  """Prints and returns tokens a second and bytes, by residency and kind of work."""
  import jax

  cfg, lora = _config(), _lora()
  work, held = {}, {}
  for residency in RESIDENCIES:
    jobs, held[residency] = _jobs(residency)
    work |= {(residency, name): job for name, job in jobs.items()}
  peer = _on_gpu() and bench_peer.is_here()
  if peer:
    jobs = bench_peer.jobs(cfg, lora, _ids(), PROMPT, ANSWER, BATCH, ROWS)
    work |= {(PEER, name): job for name, job in jobs.items()}
  best = fastest({key: call for key, (call, _) in work.items()}, rounds)
  rates = {key: tokens / best[key] for key, (_, tokens) in work.items()}
  print(
    f'decoder of {cfg.llama.layers} x {cfg.llama.width}, {cfg.dtype}, '
    f'{jax.devices()[0].device_kind}, best of {rounds} rounds; jax {jax.__version__}, '
    f'Python {platform.python_version()}; tokens a second'
  )
  if peer:
    print(f'{PEER}: NF4 with double quantization; {bench_peer.versions()}')
  names = list(dict.fromkeys(name for _, name in work))
  print(f'{"":<12}{"linears":>10}' + ''.join(f'{name:>18}' for name in names))
  figures = {}
  for who in dict.fromkeys(who for who, _ in work):
    row = {name: rates[who, name] for name in names}
    figures[who] = {**held.get(who, {}), 'tokens_per_second': row}
    nbytes = f'{held[who]["linear_bytes"] / 1e6:.1f} MB' if who in held else ''
    print(f'{who:<12}{nbytes:>10}' + ''.join(f'{r:18,.0f}' for r in row.values()))
  if _on_gpu():
    figures['products'] = _products(rounds, peer)
  return figures


def fastest(calls: dict, rounds: int) -> dict:
  """Seconds of the fastest round of each; the first, which compiles, is not counted."""
  best: dict = {}
  for number in range(rounds + 1):
    for key, call in calls.items():
      clock = time.perf_counter()
      call()
      if number:
        best[key] = min(time.perf_counter() - clock, best.get(key, float('inf')))
  return best


def _products(rounds: int, peer: bool) -> dict:
  """Microseconds of one product `[rows, in] x [out, in]`, by who and by rows."""
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.core.quant import nf4
  from vlm_rlaif_jax.core.quant.product import product

  out, inp = PRODUCT
  weight = 0.02 * jax.random.normal(jax.random.key(0), PRODUCT)
  kinds = {
    'bfloat16': (lambda x, w: jnp.einsum('ri,oi->ro', x, w), weight.astype('bfloat16')),
    'nf4': (product, nf4.quantize(weight)),
  }

  def repeated(function):
    """Each product waits for the one before: they are timed, not their launching."""

    @jax.jit
    def run(x, w):
      again = lambda _, x: jnp.minimum(x, jnp.max(function(x, w)))
      return jax.lax.fori_loop(0, REPEATS, again, x)

    return run

  def call(run, x, w):
    jax.block_until_ready(run(x, w))

  calls = {}
  for rows in PRODUCT_ROWS:
    x = jnp.ones((rows, inp), 'bfloat16')
    for who, (function, w) in kinds.items():
      calls[who, rows] = functools.partial(call, repeated(function), x, w)
    if peer:
      calls[PEER, rows] = bench_peer.product(out, inp, rows, REPEATS)
  best = fastest(calls, rounds)
  micros = {key: 1e6 * seconds / REPEATS for key, seconds in best.items()}
  print(f'product with [{out}, {inp}], microseconds, by rows')
  print(f'{"":<12}' + ''.join(f'{rows:>10}' for rows in PRODUCT_ROWS))
  table = {}
  for who in dict.fromkeys(who for who, _ in calls):
    table[who] = {rows: micros[who, rows] for rows in PRODUCT_ROWS}
    print(f'{who:<12}' + ''.join(f'{t:10.1f}' for t in table[who].values()))
  return table


def _on_gpu() -> bool:
  import jax

  return jax.default_backend() == 'gpu'


def _ids():
  import numpy as np

  rng = np.random.default_rng(0)
  return rng.integers(3, _config().llama.vocab, (max(ROWS), LENGTH), dtype=np.int32)


def _lora():
  from vlm_rlaif_jax.settings.models import LoraConfig

  return LoraConfig(rank=16, alpha=16.0)


def _config():
  import jax

  from vlm_rlaif_jax.settings import models

  layers = (
    models.LlamaConfig(vocab=4096, layers=4)
    if _on_gpu()
    else models.LlamaConfig(
      vocab=4096, width=512, mlp=1408, layers=2, heads=8, kv_heads=8, head_dim=64
    )
  )
  return models.VlmConfig(
    name='bench',
    llama=layers,
    dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
    remat='none',
  )


def _jobs(residency: str) -> tuple[dict, dict]:
  """name -> (a call, its tokens); and how the base is held."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vlm_rlaif_jax.core import sharding, trees
  from vlm_rlaif_jax.inference import sampler
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.settings.sections import MeshConfig, OptimConfig, QuantConfig
  from vlm_rlaif_jax.train import optim, shardings, supervised

  cfg, lora, ids = _config(), _lora(), _ids()
  model, settings = Vlm(cfg, lora), QuantConfig(residency=residency)  # type: ignore
  rng = np.random.default_rng(0)
  shapes = trees.flatten(network_shapes.abstract_params(cfg)['llama'])
  llama = {
    name: np.ones(x.shape, np.float32)
    if name.endswith('scale')
    else rng.normal(0, 0.02, x.shape).astype(np.float32)
    for name, x in shapes.items()
  }
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  base = placement.on_device(
    {'llama': trees.unflatten(llama)}, cfg, mesh, held=settings
  )
  no_video = lambda rows: jnp.zeros((rows, 1, cfg.llama.width), cfg.dtype)

  optimizer = optim.make_optimizer(OptimConfig())
  batch = {
    'ids': jnp.asarray(ids[:BATCH]),
    'target': jnp.ones((BATCH, LENGTH), bool),
    'tokens': no_video(BATCH),
  }
  fresh = lambda: adapters.init_adapter(cfg, lora, jax.random.key(1))
  trained = {'lora': fresh()}
  where = shardings.trainable(cfg, lora, mesh, trained)
  held = {'state': shardings.start(trained, where, optimizer, 0, mesh)}
  step = supervised.program(
    lambda t, b, batch, key: supervised.loss(model, b, t, batch, key),
    optimizer,
    optim.learning_rate(OptimConfig(), 1000),
    1,
    mesh,
    held['state'],
    base,
  )

  def train():
    held['state'], metrics = step(held['state'], base, batch)
    jax.block_until_ready(metrics)

  adapter = fresh()
  draw = jax.jit(
    lambda params, lora, ids, visual, keys: sampler.sample(
      model,
      {'params': params, 'lora': lora},
      ids,
      ids != 0,
      visual,
      keys,
      sampler.Sampling(ANSWER, eos=-1),
    )
  )

  def answer(rows):
    prompts = jnp.asarray(ids[:rows, :PROMPT])
    keys = sampler.example_keys(jax.random.key(0), jnp.arange(rows))
    jax.block_until_ready(draw(base, adapter, prompts, no_video(rows), keys))

  jobs: dict[str, tuple] = {
    f'decode, {rows} rows': (functools.partial(answer, rows), rows * ANSWER)
    for rows in ROWS
  }
  jobs['LoRA step'] = (train, BATCH * LENGTH)
  return jobs, placement.base_summary(base, settings)
