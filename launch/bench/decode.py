"""Decoding on one card, by parts: attention over the cache, and a whole step.

On a GPU the network is LLaMA 7B, with the shapes of one card of eight in a PPO
iteration: 32 answers of 896 tokens after 753 positions, 1,201 of 1,664 slots filled.
Elsewhere a tiny one shows that everything runs. Weights are random. Whole phases, with
their memory next to the plan:

  python -m launch.bench phases --config configs/ppo.py:7b --only=rollout,score,update \
    --config.ppo.rollout_batch=32 --config.ppo.step_batch=16 \
    --config.ppo.micro_batch=4 --config.ppo.epochs=1 \
    --config.ppo.rollout_weights=merged \
    --config.model.remat=names --config.critic.remat=names
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from launch import process
from vlm_rlaif_jax.settings.models import (
  CacheKind,
  LlamaConfig,
  LoraConfig,
  VlmConfig,
)
from vlm_rlaif_jax.train.profiling import flops

ROWS, PROMPT, ANSWER = 32, 753, 896
FEW_STEPS, MANY_STEPS = 4, 36  # the difference of their seconds counts
CALLS = 10  # of an attention in one timing
LAYERS = 4  # caches that attentions read in turn
DTYPE = 'bfloat16'
KERNELS = (  # tile, heads, shares, warps
  (8, 8, 0, 4), (16, 8, 0, 4), (8, 8, 4, 4), (8, 8, 16, 4), (8, 4, 0, 2),
  (16, 4, 0, 2), (8, 16, 0, 8), (4, 8, 0, 4),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Shapes of the measurements.

  Attributes:
    llama: the decoder.
    rank: of its adapter.
    rows: answers at a time.
    filled: slots that hold a token.
    slots: of the cache.
    on_gpu: whether kernels are compiled; if not, the interpreter runs them.
  """

  llama: LlamaConfig
  rank: int
  rows: int
  filled: int
  slots: int
  on_gpu: bool

  def filled_bytes(self, kind: CacheKind = 'native') -> int:
    """Returns the bytes of the filled slots of one layer."""
    each = flops.cache_bytes(self.llama, kind) // self.llama.layers
    return self.rows * self.filled * each


def decode(rounds: int) -> dict:
  """Prints and returns seconds and bytes a second of attentions and of a step."""
  process.start()
  sizes = _sizes()
  return {'attention': _attentions(sizes, rounds), 'step': _steps(sizes, rounds)}


def _sizes() -> Sizes:
  import jax

  from vlm_rlaif_jax.nn import cache

  if jax.default_backend() == 'gpu':
    slots = cache.slots(PROMPT + ANSWER)
    return Sizes(LlamaConfig(), 64, ROWS, PROMPT + ANSWER // 2, slots, True)
  tiny = LlamaConfig(
    vocab=64, width=32, mlp=64, layers=2, heads=4, kv_heads=4, head_dim=16
  )
  return Sizes(tiny, 4, 2, 80, cache.slots(100), False)


def _random(seed: int, shape: tuple[int, ...]) -> Any:
  import jax

  @functools.partial(jax.jit, static_argnums=1)
  def sample(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return (0.02 * jax.random.normal(jax.random.key(seed), shape)).astype(DTYPE)

  return sample(seed, shape)


def _seconds(call: Callable[[], Any], rounds: int, calls: int = 1) -> float:
  """Returns the seconds of one call in the fastest round."""
  import jax

  jax.block_until_ready(call())
  best = float('inf')
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(calls):
      out = call()
    jax.block_until_ready(out)
    best = min(best, (time.perf_counter() - start) / calls)
  return best


def _attentions(sizes: Sizes, rounds: int) -> dict[str, Any]:
  """Times each form of attention over the cache of a layer, several in turn."""
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.nn import cache, cache_int8, cache_kernel

  cfg, rows = sizes.llama, sizes.rows
  q = _random(0, (rows, cfg.heads, cfg.head_dim))
  shape = rows, sizes.slots, cfg.kv_heads, cfg.head_dim
  pasts = [(_random(2 * i, shape), _random(2 * i + 1, shape)) for i in range(LAYERS)]
  start, stop = jnp.zeros(rows, jnp.int32), jnp.full(rows, sizes.filled)
  expected = jax.jit(cache.by_xla)(q, *pasts[0], start, stop).astype('float32')

  def by_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, stop: jax.Array
  ) -> jax.Array:
    return jax.nn.dot_product_attention(
      q[:, None], k, v, key_value_seq_lengths=stop, implementation='cudnn'
    )[:, 0]

  forms: dict[str, tuple[CacheKind, Callable[..., jax.Array]]] = {
    'XLA, all slots': ('native', cache.by_xla),
    'XLA, all slots, int8': ('int8', cache.by_xla),
  }
  if sizes.on_gpu:
    forms['cuDNN, by lengths'] = 'native', by_cudnn
  for tile, heads, shares, warps in KERNELS if sizes.on_gpu else KERNELS[:1]:
    kernel = functools.partial(
      cache_kernel.attend,
      tile=tile,
      heads=heads,
      shares=shares,
      warps=warps,
      interpret=not sizes.on_gpu,
    )
    tiling = f'kernel, tile {tile}, heads {heads}, shares {shares}, warps {warps}'
    forms |= {tiling: ('native', kernel), f'{tiling}, int8': ('int8', kernel)}
  figures = {}
  caches = {'native': pasts, 'int8': jax.tree.map(cache_int8.quantize, pasts)}
  for name, (kind, attend) in forms.items():
    pasts = caches[kind]

    @jax.jit
    def run(q: jax.Array, pasts: Any, attend: Any = attend) -> list[jax.Array]:
      return [attend(q, *past, start, stop) for past in pasts]

    try:
      error = float(jnp.max(jnp.abs(run(q, pasts)[0].astype('float32') - expected)))
      seconds = _seconds(functools.partial(run, q, pasts), rounds, CALLS) / LAYERS
    except Exception as failure:  # a tiling that Triton cannot compile, or no cuDNN
      print(f'attention {name}: {str(failure).splitlines()[0][:120]}', flush=True)
      continue
    figures[name] = {'seconds': seconds, 'error': error}
    print(
      f'attention {name:<56}{1e6 * seconds:9.1f} us '
      f'{sizes.filled_bytes(kind) / seconds / 1e12:6.2f} TB/s of filled slots; '
      f'{error:.1e} from XLA',
      flush=True,
    )
  return figures


def _random_base(cfg: VlmConfig) -> dict[str, Any]:
  """Returns random weights of a language model; norms are as initialized."""
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.weights import network_shapes

  def fill(path: tuple, x: Any) -> jax.Array:
    if 'norm' in jax.tree_util.keystr(path):
      return jnp.ones(x.shape, jnp.float32)
    return _random(len(path), tuple(x.shape))

  shapes = network_shapes.abstract_params(cfg)['llama']
  return {'params': {'llama': jax.tree_util.tree_map_with_path(fill, shapes)}}


def _steps(sizes: Sizes, rounds: int) -> dict[str, Any]:
  """Times one token through all layers, compiled in two ways, with either cache."""
  import jax
  import jax.numpy as jnp

  from vlm_rlaif_jax.core import sharding
  from vlm_rlaif_jax.inference import decoder_weights, decoding
  from vlm_rlaif_jax.nn import cache_int8
  from vlm_rlaif_jax.nn.vlm import Vlm

  # Network: random weights, merged
  llama, rows = sizes.llama, sizes.rows
  cfg = VlmConfig(name='bench', llama=llama, dtype=DTYPE)
  model = Vlm(cfg, LoraConfig(rank=sizes.rank))
  prepare = jax.jit(lambda base: decoder_weights.prepare(model, base, 'merged', True))
  weights = prepare(_random_base(cfg))

  def run_steps(
    kind: CacheKind, weights: decoder_weights.Weights, count: jax.Array
  ) -> jax.Array:
    shape = rows, sizes.slots, llama.kv_heads, llama.head_dim
    few = 0.5 * jax.random.normal(jax.random.key(1), (1, 1, 1, llama.head_dim))

    def filled() -> jax.Array | cache_int8.Int8:
      keys = jnp.broadcast_to(few.astype(DTYPE), shape) + jnp.zeros((), DTYPE)
      return cache_int8.store(keys, kind)

    def body(i: jax.Array, carry: tuple) -> tuple:
      token, past = carry
      position = jnp.int32(sizes.filled) + i
      start, stop = jnp.zeros(rows, jnp.int32), jnp.full(rows, position + 1, jnp.int32)
      hidden, past = decoding.step(model, weights, token, position, start, stop, past)
      logits = hidden @ weights.rest['llama']['head']['w'].T
      return jnp.argmax(logits, -1).astype(jnp.int32), past

    past = tuple((filled(), filled()) for _ in range(llama.layers))
    return jax.lax.fori_loop(0, count, body, (jnp.ones(rows, jnp.int32), past))[0]

  # Time
  weight_bytes = sum(x.nbytes for x in jax.tree.leaves(weights))
  weight_bytes -= weights.rest['llama']['tokens']['w'].nbytes  # a few rows are read
  figures = {}
  cublas = dict(sharding.CUBLAS) if sizes.on_gpu else None
  forms: dict[str, tuple[CacheKind, Any]] = {
    'cuBLAS': ('native', cublas),
    "XLA's choice": ('native', None),
    'cuBLAS, int8 cache': ('int8', cublas),
  }
  for name, (kind, options) in forms.items():
    nbytes = weight_bytes + llama.layers * sizes.filled_bytes(kind)
    clock = time.perf_counter()
    steps = jax.jit(functools.partial(run_steps, kind), compiler_options=options)
    run = steps.lower(weights, jnp.int32(1)).compile()
    compile_seconds = time.perf_counter() - clock
    few, many = (
      _seconds(functools.partial(run, weights, jnp.int32(count)), rounds)
      for count in (FEW_STEPS, MANY_STEPS)
    )
    seconds = (many - few) / (MANY_STEPS - FEW_STEPS)
    memory = run.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else float('nan')
    figures[name] = {'seconds': seconds, 'temporary_bytes': temporary}
    print(
      f'step, {name:<20}{1e3 * seconds:9.3f} ms {nbytes / seconds / 1e12:6.2f} TB/s; '
      f'{ANSWER * seconds:.2f} s for {ANSWER}; compiled in {compile_seconds:.0f} s, '
      f'temporaries {temporary / 1e9:.2f} GB',
      flush=True,
    )
  return figures
