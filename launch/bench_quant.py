"""Decoding and a LoRA step with the base held in each way: tokens a second, bytes.

One decoder of a few layers, with LoRA on every linear; all ways work in turn in every
round, and the fastest round counts.
"""

import platform
import time

BATCH, LENGTH = 8, 128  # of the training step, in tokens
PROMPT, ANSWER = 32, 32  # of decoding, in tokens
ROWS = (1, 8, 32)  # batch sizes of decoding
RESIDENCIES = ('native', 'nf4', 'nf4_bf16', 'int4')


def quant(rounds: int) -> dict:
  """Prints and returns tokens a second and bytes, by residency and kind of work."""
  import jax

  work, held = {}, {}
  for residency in RESIDENCIES:
    jobs, held[residency] = _jobs(residency)
    work |= {(residency, name): job for name, job in jobs.items()}
  best: dict[tuple[str, str], float] = {}
  for number in range(rounds + 1):
    for key, (job, _) in work.items():
      clock = time.perf_counter()
      job()
      if number:
        best[key] = min(time.perf_counter() - clock, best.get(key, float('inf')))
  rates = {key: tokens / best[key] for key, (_, tokens) in work.items()}
  cfg = _config()
  print(
    f'decoder of {cfg.llama.layers} x {cfg.llama.width}, {cfg.dtype}, '
    f'{jax.devices()[0].device_kind}, best of {rounds} rounds; jax {jax.__version__}, '
    f'Python {platform.python_version()}; tokens a second'
  )
  names = list(dict.fromkeys(name for _, name in work))
  print(f'{"":<12}{"linears":>10}' + ''.join(f'{name:>18}' for name in names))
  for residency in RESIDENCIES:
    row = ''.join(f'{rates[residency, name]:18,.0f}' for name in names)
    print(f'{residency:<12}{held[residency]["linear_bytes"] / 1e6:7.1f} MB{row}')
  return {
    residency: {
      **held[residency],
      'tokens_per_second': {name: rates[residency, name] for name in names},
    }
    for residency in RESIDENCIES
  }


def _config():
  import jax

  from vlm_rlaif_jax.config import models

  on_cpu = jax.default_backend() == 'cpu'
  return models.VlmConfig(
    name='bench',
    llama=models.LlamaConfig(
      vocab=4096, width=512, mlp=1408, layers=4, heads=8, kv_heads=8, head_dim=64
    ),
    dtype='float32' if on_cpu else 'bfloat16',
    remat='none',
  )


def _jobs(residency: str) -> tuple[dict, dict]:
  """name -> (a call, its tokens); and how the base is held."""
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from vlm_rlaif_jax import decode
  from vlm_rlaif_jax.config.models import LoraConfig
  from vlm_rlaif_jax.config.sections import Mesh, Optim, Quant
  from vlm_rlaif_jax.core import sharding, trees
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.train import bases, layouts, optim, supervised

  cfg, lora = _config(), LoraConfig(rank=16, alpha=16.0)
  model, settings = Vlm(cfg, lora), Quant(residency=residency)
  rng = np.random.default_rng(0)
  shapes = trees.flatten(bases.abstract_params(cfg)['llama'])
  llama = {
    name: np.ones(x.shape, np.float32)
    if name.endswith('scale')
    else rng.normal(0, 0.02, x.shape).astype(np.float32)
    for name, x in shapes.items()
  }
  mesh = sharding.make_mesh(Mesh(data=1), jax.devices()[:1])
  base = bases.on_device({'llama': trees.unflatten(llama)}, cfg, mesh, held=settings)
  ids = rng.integers(3, cfg.llama.vocab, (max(ROWS), LENGTH), dtype=np.int32)
  no_video = lambda rows: jnp.zeros((rows, 1, cfg.llama.width), cfg.dtype)

  optimizer = optim.make_optimizer(Optim())
  step = jax.jit(
    supervised.make_step(
      lambda t, b, batch, key: supervised.loss(model, b, t, batch, key),
      optimizer,
      optim.learning_rate(Optim(), 1000),
      1,
    ),
    donate_argnums=0,
  )
  batch = {
    'ids': jnp.asarray(ids[:BATCH]),
    'target': jnp.ones((BATCH, LENGTH), bool),
    'tokens': no_video(BATCH),
  }
  fresh = lambda: bases.init_adapter(cfg, lora, jax.random.key(1))
  trained = {'lora': fresh()}
  where = layouts.trainable(cfg, lora, mesh, trained)
  held = {'state': layouts.start(trained, where, optimizer, 0, mesh)}

  def train():
    held['state'], metrics = step(held['state'], base, batch)
    jax.block_until_ready(metrics)

  adapter = fresh()
  draw = jax.jit(
    lambda params, lora, ids, visual, keys: decode.sample(
      model,
      {'params': params, 'lora': lora},
      ids,
      ids != 0,
      visual,
      keys,
      decode.Sampling(ANSWER, eos=-1),
    )
  )

  def answer(rows):
    prompts = jnp.asarray(ids[:rows, :PROMPT])
    keys = decode.example_keys(jax.random.key(0), jnp.arange(rows))
    jax.block_until_ready(draw(base, adapter, prompts, no_video(rows), keys))

  jobs = {
    f'decode, {rows} rows': (functools.partial(answer, rows), rows * ANSWER)
    for rows in ROWS
  }
  jobs['LoRA step'] = (train, BATCH * LENGTH)
  return jobs, bases.held_bytes(base, settings)
