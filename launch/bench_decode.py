"""Decoding on one card, by parts: attention over the cache, and a whole step.

  python -m launch.bench_decode              # the 7B size, on a GPU
  python -m launch.bench_decode tiny         # that it runs, on a CPU

Shapes are those of one card of eight in a PPO iteration: 32 answers of 896 tokens after
753 positions, 1,201 of 1,664 slots filled. Weights are random. Whole phases, with their
memory beside the plan:

  python -m launch.bench phases --config configs/ppo.py:7b --only=rollout,score,update \
    --config.ppo.rollout_batch=32 --config.ppo.step_batch=16 \
    --config.ppo.micro_batch=4 --config.ppo.epochs=1 \
    --config.ppo.rollout_weights=merged \
    --config.model.remat=names --config.critic.remat=names
"""

import functools
import sys
import time

ROWS, PROMPT, ANSWER = 32, 753, 896
FEW, MANY = 4, 36  # steps: the difference is timed
KERNELS = (  # tile, heads, shares, warps
  (8, 8, 0, 4), (16, 8, 0, 4), (8, 8, 4, 4), (8, 8, 16, 4), (8, 4, 0, 2),
  (16, 4, 0, 2), (8, 16, 0, 8), (4, 8, 0, 4),
)  # fmt: skip


def main(size: str) -> None:
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.inference import decoding
  from vlm_rlaif_jax.nn import cache, cache_kernel
  from vlm_rlaif_jax.nn.vlm import Vlm
  from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig, VlmConfig
  from vlm_rlaif_jax.weights import network_shapes

  tiny = size == 'tiny'
  small = LlamaConfig(
    vocab=64, width=32, mlp=64, layers=2, heads=4, kv_heads=4, head_dim=16
  )
  llama = small if tiny else LlamaConfig()
  rows, seen = (2, 100) if tiny else (ROWS, PROMPT + ANSWER // 2)
  slots = cache.slots(PROMPT + ANSWER) if not tiny else 128
  dtype = jnp.bfloat16
  options = None if tiny else {'xla_gpu_enable_triton_gemm': False}

  def timed(call, times: int = 1) -> float:
    jax.block_until_ready(call())
    best = float('inf')
    for _ in range(3):
      clock = time.perf_counter()
      for _ in range(times):
        out = call()
      jax.block_until_ready(out)
      best = min(best, (time.perf_counter() - clock) / times)
    return best

  @functools.partial(jax.jit, static_argnums=(1, 2))
  def random(key, shape, dtype):
    return (0.02 * jax.random.normal(jax.random.key(key), shape)).astype(dtype)

  # ---- attention of a layer, four of them in turn
  heads, width = llama.heads, llama.head_dim
  q = random(0, (rows, heads, width), dtype)
  pasts = [
    tuple(random(2 * i + j, (rows, slots, heads, width), dtype) for j in (0, 1))
    for i in range(4)
  ]
  start, stop = jnp.zeros(rows, jnp.int32), jnp.full(rows, seen)
  read = 2 * rows * seen * heads * width * 2

  def attention(name, attend, pasts):
    try:
      run = jax.jit(lambda q, p: [attend(q, *kv, start, stop) for kv in p])
      first = run(q, pasts)[0]
      seconds = timed(lambda: run(q, pasts), 10) / 4
      away = jnp.max(jnp.abs(first.astype('float32') - plain.astype('float32')))
      print(
        f'attention {name:<36}{1e6 * seconds:9.1f} us '
        f'{read / seconds / 1e12:6.2f} TB/s of what is filled; '
        f'{float(away):.1e} from XLA', flush=True,
      )  # fmt: skip
    except Exception as error:
      print(f'attention {name}: {str(error).splitlines()[0][:120]}', flush=True)

  def by_cudnn(q, k, v, start, stop):
    return jax.nn.dot_product_attention(
      q[:, None], k, v, key_value_seq_lengths=stop, implementation='cudnn'
    )[:, 0]

  plain = jax.jit(cache.by_xla)(q, *pasts[0], start, stop)
  attention('XLA, all slots', cache.by_xla, pasts)
  if not tiny:
    attention('cuDNN, by lengths', by_cudnn, pasts)
  for tile, wide, shares, warps in KERNELS[: 1 if tiny else None]:
    more = {'tile': tile, 'heads': wide, 'shares': shares, 'warps': warps}
    run = functools.partial(cache_kernel.attend, **more, interpret=tiny)
    attention(f'kernel, {", ".join(f"{k} {v}" for k, v in more.items())}', run, pasts)
  del pasts

  # ---- a step, through all layers
  cfg = VlmConfig(name='bench', llama=llama, dtype='bfloat16')
  lora = LoraConfig(rank=4 if tiny else 64)
  model = Vlm(cfg, lora)
  shapes = network_shapes.abstract_params(cfg)['llama']
  fill = lambda path, x: (
    jnp.ones(x.shape, jnp.float32)
    if 'norm' in jax.tree_util.keystr(path)
    else random(len(path), tuple(x.shape), dtype)
  )
  base = {'params': {'llama': jax.tree_util.tree_map_with_path(fill, shapes)}}
  held = jax.jit(lambda v: decoding.held(model, v, 'merged', True))
  weights = held(base)
  del base
  shape = (rows, slots, llama.kv_heads, width)

  def steps(weights, count, how=None):
    few = 0.5 * jax.random.normal(jax.random.key(1), (1, 1, 1, width))
    filled = lambda: jnp.broadcast_to(few.astype(dtype), shape) + dtype(0)
    past = tuple((filled(), filled()) for _ in range(llama.layers))

    def body(i, carry):
      token, past = carry
      at = jnp.int32(seen) + i
      ends = jnp.full(rows, at + 1, jnp.int32)
      hidden, past = decoding._step(model, weights, token, at, start, ends, past)
      logits = hidden @ weights.rest['llama']['head']['w'].T
      return jnp.argmax(logits, -1).astype(jnp.int32), past

    return jax.lax.fori_loop(0, count, body, (jnp.ones(rows, jnp.int32), past))[0]

  total = sum(x.nbytes for x in jax.tree.leaves(weights)) + llama.layers * read
  for name, how in (('cuBLAS', options), ("XLA's choice", None)):
    clock = time.perf_counter()
    run = jax.jit(steps, compiler_options=how).lower(weights, jnp.int32(1)).compile()
    compiled = time.perf_counter() - clock
    spent = [
      timed(lambda n=n, run=run: run(weights, jnp.int32(n))) for n in (FEW, MANY)
    ]
    seconds = (spent[1] - spent[0]) / (MANY - FEW)
    print(
      f'step, {name:<20}{1e3 * seconds:9.3f} ms {total / seconds / 1e12:6.2f} TB/s; '
      f'{ANSWER * seconds:.2f} s for {ANSWER}; compiled in {compiled:.0f} s, '
      f'temporaries '
      f'{run.memory_analysis().temp_size_in_bytes / 1e9:.2f} GB', flush=True,
    )  # fmt: skip


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else '7b')
