"""Our side of `bench gpu`: ceilings, parts of a layer, decoding, phases, a LoRA step.

Each item is a function of the size ('7b', or 'tiny' for a CPU) that calls `note`.
"""

import concurrent.futures
import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch import bench_gpu_kernels as kernels
from launch import bench_phases
from launch.bench_gpu import attempt, note, serve
from vlm_rlaif_jax import decode as sampler
from vlm_rlaif_jax.config.models import LlamaConfig, LoraConfig, VlmConfig
from vlm_rlaif_jax.config.sections import Mesh, Optim, Quant
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import kernel, nf4
from vlm_rlaif_jax.nn import layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.train import bases, flops, layouts, optim, supervised

CUBLAS = {'xla_gpu_enable_triton_gemm': False}
SAME_BITS = {'xla_gpu_exclude_nondeterministic_ops': True}
TOGETHER = 8  # programs that are compiled at a time
ROUNDS = 3
LORA = LoraConfig()


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Of one size: the decoder, rows and positions of each item."""

  llama: LlamaConfig
  rows: int = 32  # of decoding
  prompt: int = 753
  answer: int = 896
  train_rows: int = 4
  stacked: int = 4  # layers that a part works through, so that no cache helps
  matmul: int = 8192
  copied: int = 1 << 30
  repeats: int = 10
  dtype: str = 'bfloat16'

  @property
  def length(self) -> int:
    return self.prompt + self.answer

  @property
  def even(self) -> int:  # positions, a multiple of 128
    return -(-self.length // 128) * 128


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
    stacked=2,
    matmul=256,
    copied=1 << 20,
    repeats=1,
  ),
}


def on_gpu() -> bool:
  return jax.default_backend() == 'gpu'


def known_options(options: dict | None) -> dict | None:
  return options if on_gpu() else None  # those here are of XLA for GPUs


def compiled(programs: dict) -> dict:
  """name -> (function, its arguments, compiler options) to executables, together.

  A program that does not compile is noted as a row and left out.
  """

  def one(entry):
    function, arguments, options = entry
    return jax.jit(function, compiler_options=known_options(options)).lower(
      *arguments
    ).compile()  # fmt: skip

  made = {}
  with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
    waiting = {name: pool.submit(one, entry) for name, entry in programs.items()}
    for name, future in waiting.items():
      attempt(name, lambda n=name, f=future: made.__setitem__(n, f.result()))
  return made


def timed(call, repeats: int, rounds: int = ROUNDS) -> float:
  """Seconds of one call in the fastest round, after one call that does not count."""
  jax.block_until_ready(call())
  best = float('inf')
  for _ in range(rounds):
    clock = time.perf_counter()
    for _ in range(repeats):
      result = call()
    jax.block_until_ready(result)
    best = min(best, (time.perf_counter() - clock) / repeats)
  return best


def random(key: int, *shape: int, dtype='bfloat16', scale: float = 1.0):
  return _random(jax.random.key(key), shape, dtype, scale)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random(key, shape, dtype, scale):
  return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def peak() -> dict:
  used = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
  return {'GB': used / 1e9} if used else {}


# ---------------------------------------------------------------- ceilings


def ceilings(size: str) -> None:
  shapes = SHAPES[size]
  x = random(0, shapes.copied)
  seconds = timed(functools.partial(jax.jit(jnp.negative), x), shapes.repeats)
  note('jax copy', seconds=seconds, bytes=2 * x.nbytes)
  most = jax.jit(lambda x: jnp.max(x.reshape(-1, 128), axis=1))
  seconds = timed(functools.partial(most, x), shapes.repeats)
  note('jax read', seconds=seconds, bytes=x.nbytes + x.nbytes // 128)
  n = shapes.matmul
  a, b = random(1, n, n), random(2, n, n)
  seconds = timed(functools.partial(jax.jit(jnp.matmul), a, b), shapes.repeats)
  note('jax matmul', seconds=seconds, flops=2 * n**3)
  strict = jax.jit(jnp.matmul, compiler_options=known_options(SAME_BITS))
  seconds = timed(functools.partial(strict, a, b), shapes.repeats)
  note('jax matmul, same bits', seconds=seconds, flops=2 * n**3)


# ---------------------------------------------------------------- attention


def attention(size: str) -> None:
  """Ours beside cuDNN's: `[B, T, H, K]` of a training step, and CLIP's tower."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  rows, heads, dim = shapes.train_rows, llama.heads, llama.head_dim
  lengths = {length: _qkv(rows, length, heads, dim) for length in _two(shapes)}
  tower = _qkv(32, 577, 16, 64) if size == '7b' else _qkv(2, 17, 2, 64)
  programs, work = {}, {}

  def add(name, function, arguments, options, amount):
    programs[name] = function, arguments, options
    work[name] = amount

  for length, (q, k, v, g) in lengths.items():
    forward = 2 * length**2 * dim * heads * rows  # half of the square
    plain = functools.partial(_theirs, padded=False)
    for who, function in (
      ('ours', _ours),
      (_theirs_name(), _theirs),
      (f'{_theirs_name()} without lengths', plain),
    ):
      function = functools.partial(function, causal=True)
      add(f'{who}, T={length}', function, (q, k, v), None, forward)
      both = functools.partial(_gradients, function)
      name = f'{who}, T={length}, with gradient'
      add(name, both, (q, k, v, g), None, 3.5 * forward)
      name = f'{who}, T={length}, with gradient, same bits'
      add(name, both, (q, k, v, g), SAME_BITS, 3.5 * forward)
  q, k, v, _ = tower
  square = 4 * q.shape[1] ** 2 * q.shape[3] * q.shape[2] * q.shape[0]
  for who, function in (('ours', _ours), (_theirs_name(), _theirs)):
    add(f'{who}, CLIP', functools.partial(function, causal=False), (q, k, v), None,
        square)  # fmt: skip
  clock = time.perf_counter()
  made = compiled(programs)
  note('compilation', seconds=time.perf_counter() - clock)
  results = {}
  for name, run in made.items():
    call = functools.partial(run, *programs[name][1])
    first, second = call(), call()
    same = all(bool(jnp.array_equal(a, b)) for a, b in _pairs(first, second))
    results[name] = first if 'same bits' not in name else None
    temporary = run.memory_analysis().temp_size_in_bytes / 1e9
    more = {'twice the same': same} if 'gradient' in name else {}
    seconds = timed(call, shapes.repeats)
    note(name, seconds=seconds, flops=work[name], **more, GB=temporary)
    if name.startswith(f'{_theirs_name()}, ') and 'same bits' not in name:
      ours = results.get('ours' + name.removeprefix(_theirs_name()))
      if ours is not None:
        apart = max(_apart(a, b) for a, b in _pairs(ours, first))
        note(f'{name}, from ours', apart=apart)


def _theirs_name() -> str:
  return 'cudnn' if on_gpu() else 'jax.nn'


def _two(shapes: Shapes) -> tuple[int, int]:
  return shapes.length, shapes.even


def _qkv(rows, length, heads, dim):
  return [random(i, rows, length, heads, dim) for i in range(4)]


def _ours(q, k, v, *, causal: bool):
  """Our attention between `[B, T, H, K]`: turning is part of it, as in a layer."""
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  mask = layers.causal_mask(jnp.ones(q.shape[:1] + q.shape[2:3], bool))
  out = layers.attend(q, k, v, mask if causal else None, causal=causal)
  return jnp.swapaxes(out, 1, 2)


def _theirs(q, k, v, *, causal: bool, padded: bool = True):
  """padded: rows come with their lengths, as packed rows will."""
  lengths = None
  if causal and padded:
    lengths = jnp.full(q.shape[0], q.shape[1], jnp.int32)
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    is_causal=causal,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation='cudnn' if on_gpu() else None,
  )


def _gradients(function, q, k, v, g):
  out, back = jax.vjp(function, q, k, v)
  return out, *back(g)


def _pairs(first, second):
  return list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def _apart(a, b) -> float:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


# ---------------------------------------------------------------- attention of decoding


def decode_attention(size: str) -> None:
  """One new token against the cache: microseconds a layer, by layout and by kernel.

  `scan`: a scan over stacked layers, as our decoding is; else an array a layer.
  """
  shapes, llama = SHAPES[size], SHAPES[size].llama
  rows, heads, dim, count = shapes.rows, llama.kv_heads, llama.head_dim, shapes.stacked
  q = random(0, rows, heads, 1, dim)
  programs, work, arguments = {}, {}, {}
  cut = lambda slots, *order: tuple(
    random(i, *(_sizes(count, rows, heads, slots, dim)[axis] for axis in order[i]))
    for i in (0, 1)
  )
  layer_bytes = 2 * 2 * rows * heads * dim  # of a slot

  def add(name, function, given, slots, options=None):
    programs[name] = function, given, options
    work[name] = layer_bytes * slots
    arguments[name] = given

  for slots in _two(shapes):
    plain = cut(slots, 'lbgsk', 'lbgsk')
    add(f'XLA, scan, [L,B,G,S,K], S={slots}', _xla_scan, (q, *plain), slots)
    today = cut(slots, 'bgslk', 'bgkls')
    add(f'XLA, scan, [B,G,S,L,K], S={slots}', _xla_today, (q, *today), slots)
  slots = shapes.even
  by_slot = [cut(slots, 'bsgk', 'bsgk') for _ in range(count)]
  add(f'XLA, [B,S,G,K], S={slots}', _xla_by_slot, (q, by_slot), slots)
  by_head = [cut(slots, 'bgsk', 'bgsk') for _ in range(count)]
  add(f'XLA, [B,G,S,K], S={slots}', _xla_by_head, (q, by_head), slots)
  if on_gpu():
    filled = jnp.full(rows, shapes.prompt + shapes.answer // 2, jnp.int32)
    seen = shapes.prompt + shapes.answer // 2
    add(f'cudnn, [B,S,G,K], {seen} of {slots}', _cudnn, (q, by_slot, filled), seen)
  stack = cut(slots, 'lbgsk', 'lbgsk')
  start, stop = jnp.zeros(rows, jnp.int32), jnp.int32(slots)
  tried = [(b, s, 4) for b in (32, 64) for s in (1, 2, 4, 8)]
  tried += [(64, 1, 8), (64, 2, 8), (128, 1, 8), (128, 2, 8), (32, 1, 2), (32, 2, 2)]
  for block, shares, warps in tried if on_gpu() else [(16, 2, 4)]:
    how = {'block': block, 'shares': shares, 'warps': warps}
    how['interpret'] = not on_gpu()
    name = f'kernel, block {block}, shares {shares}, warps {warps}'
    function = functools.partial(_kernel, how=how)
    add(name, function, (q, *stack, start, stop), slots)
  clock = time.perf_counter()
  made = compiled(programs)
  note('compilation', seconds=time.perf_counter() - clock)
  expected = None
  for name, run in made.items():
    seconds = timed(functools.partial(run, *arguments[name]), shapes.repeats) / count
    temporary = run.memory_analysis().temp_size_in_bytes / 1e9
    more = {}
    if name.startswith('kernel'):
      if expected is None:
        expected = jax.jit(_reference)(q, *stack, start, stop)
      more['apart'] = _apart(run(*arguments[name]), expected)
    note(name, seconds=seconds, bytes=work[name], GB=temporary, **more)
    if name.startswith('kernel'):
      part = jnp.int32(shapes.prompt + shapes.answer // 2)
      given = (*arguments[name][:-1], part)
      seconds = timed(functools.partial(run, *given), shapes.repeats) / count
      filled = layer_bytes * int(part)
      note(f'{name}, {int(part)} filled', seconds=seconds, bytes=filled)


def _sizes(count, rows, heads, slots, dim):
  return {'l': count, 'b': rows, 'g': heads, 's': slots, 'k': dim}


def _xla_scan(q, k, v):
  """As `nn.llama` has it: layers are scanned, the new token stands beside the cache."""
  mask = jnp.ones((q.shape[0], 1, k.shape[3] + 1), bool)
  one = lambda q, past: (layers.attend(q, q, q, mask, past, causal=True), None)
  return jax.lax.scan(one, q, (k, v))[0]


def _xla_today(q, k, v):
  """The same from the layouts that XLA gives the cache of a rollout."""
  turned = jnp.transpose(k, (3, 0, 1, 2, 4)), jnp.transpose(v, (3, 0, 1, 4, 2))
  return _xla_scan(q, *turned)


def _xla_by_head(q, pasts):
  mask = jnp.ones((q.shape[0], 1, pasts[0][0].shape[2] + 1), bool)
  for past in pasts:
    q = layers.attend(q, q, q, mask, past, causal=True)
  return q


def _xla_by_slot(q, pasts):
  return _xla_by_head(q, jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), pasts))


def _cudnn(q, pasts, lengths):
  q = jnp.swapaxes(q, 1, 2)
  for k, v in pasts:
    q = jax.nn.dot_product_attention(
      q, k, v, key_value_seq_lengths=lengths, implementation='cudnn'
    )
  return q


def _kernel(q, k, v, start, stop, *, how):
  q = q[:, :, 0]
  for layer in range(k.shape[0]):
    q = kernels.attend(q, k, v, jnp.int32(layer), start, stop, **how)
  return q


def _reference(q, k, v, start, stop):
  q = q[:, :, 0]
  for layer in range(k.shape[0]):
    q = kernels.reference(q, k, v, layer, start, stop).astype(q.dtype)
  return q


# ---------------------------------------------------------------- products of decoding


def products(size: str) -> None:
  """x Wᵀ of a decoding step: bf16 by cuBLAS and by XLA's own, NF4 by our kernel."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  width, mlp, count = llama.width, llama.mlp, 2 * shapes.stacked
  sides = {
    'q': (width, width),
    'q k v': (3 * width, width),
    'gate': (mlp, width),
    'gate up': (2 * mlp, width),
    'down': (width, mlp),
  }
  programs, work = {}, {}
  for name, (out, inp) in sides.items():
    x = [random(i, shapes.rows, inp) for i in range(count)]
    weights = [random(i, out, inp, scale=0.02) for i in range(count)]
    nbytes = 2 * (out * inp + shapes.rows * (out + inp))
    for how, options in (('cuBLAS', CUBLAS), ('as XLA likes', None)):
      programs[f'{name}, bf16, {how}'] = _products, (x, weights), options
      work[f'{name}, bf16, {how}'] = nbytes
    if ' ' in name:  # our kernel takes them one by one
      continue
    leaf = _random_nf4(count, out, inp)
    programs[f'{name}, NF4 kernel'] = _nf4_products, (x, leaf), None
    work[f'{name}, NF4 kernel'] = trees.nbytes(leaf) // count
    programs[f'{name}, NF4 unpacked by XLA'] = _nf4_unpacked, (x, leaf), CUBLAS
    work[f'{name}, NF4 unpacked by XLA'] = trees.nbytes(leaf) // count
  clock = time.perf_counter()
  made = compiled(programs)
  note('compilation', seconds=time.perf_counter() - clock)
  for name, run in made.items():
    call = functools.partial(run, *programs[name][1])
    seconds = timed(call, shapes.repeats) / count
    note(name, seconds=seconds, bytes=work[name])


def _products(inputs, weights):
  return [jnp.einsum('ri,oi->ro', x, w) for x, w in zip(inputs, weights, strict=True)]


def _random_nf4(count: int, out: int, inp: int):
  """Random codes and scales, of the magnitude that quantised weights have."""
  weight = jax.ShapeDtypeStruct((count, out, inp), jnp.bfloat16)
  shapes = jax.eval_shape(lambda w: nf4.quantize(w, through='float16'), weight)
  leaves, tree = jax.tree.flatten(shapes)
  return jax.tree.unflatten(tree, [_filled(i, x) for i, x in enumerate(leaves)])


def _filled(key: int, shape):
  if shape.dtype == jnp.uint8:
    return jax.jit(
      lambda: jax.random.bits(jax.random.key(key), shape.shape, jnp.uint8)
    )()
  return random(key, *shape.shape, dtype=str(shape.dtype), scale=0.02)


def _nf4_products(inputs, leaf):
  return [
    kernel.product(x, leaf, jnp.int32(layer), interpret=not on_gpu())
    for layer, x in enumerate(inputs)
  ]


def _nf4_unpacked(inputs, leaf):
  from vlm_rlaif_jax.core.quant import product

  layer = lambda i: jax.tree.map(lambda part: part[i], leaf)
  return [product.whole(x, layer(i)) for i, x in enumerate(inputs)]


# ---------------------------------------------------------------- decoding, all layers


def decode(size: str) -> None:
  """A step of decoding through all layers, in the forms that it could have.

  The loop is that of `decode.sample`, from the middle of an answer; the difference
  between many steps and few is what counts.
  """
  shapes = SHAPES[size]
  many, few = (36, 4) if size == '7b' else (20, 2)
  llama = shapes.llama
  first = shapes.prompt + shapes.answer // 2 - many // 2
  cached = shapes.rows * flops.cache_bytes(llama)
  forms = {
    'as shipped, NF4, LoRA beside': (_shipped(shapes, LORA, 'nf4'), None),
    'as shipped, bf16, LoRA beside': (_shipped(shapes, LORA), None),
    'as shipped, bf16, LoRA beside, cuBLAS': (_shipped(shapes, LORA), CUBLAS),
    'as shipped, bf16, merged, cuBLAS': (_shipped(shapes, None), CUBLAS),
    'unrolled, bf16, XLA attention, cuBLAS': (_unrolled(shapes, 'XLA'), CUBLAS),
    'unrolled, bf16, kernel, cuBLAS': (_unrolled(shapes, 'kernel'), CUBLAS),
    f'unrolled, bf16, {_theirs_name()}, cuBLAS': (_unrolled(shapes, 'cudnn'), CUBLAS),
  }
  numbers = (jnp.int32(first), jnp.int32(many))
  programs = {
    name: (step, (given(True), *numbers), options)
    for name, ((given, step), options) in forms.items()
  }
  clock = time.perf_counter()
  made = compiled(programs)
  note('compilation', seconds=time.perf_counter() - clock)
  weights, held = None, None
  for name, run in made.items():
    (given, _), _ = forms[name]
    if held != given:  # those before make room first
      weights = None
      weights, held = given(False), given
    spent = {
      count: timed(
        lambda n=count, w=weights, r=run: r(w, jnp.int32(first), jnp.int32(n)), 1, 2
      )
      for count in (few, many)
    }
    seconds = (spent[many] - spent[few]) / (many - few)
    seen = first + many // 2
    temporary = run.memory_analysis().temp_size_in_bytes / 1e9
    note(
      name,
      seconds=seconds,
      bytes=_read(weights) + cached * seen,
      **{'GB of temporaries': temporary},
    )


def _read(weights) -> int:
  """Bytes of all weights but the embeddings, of which a step reads a few rows."""
  base = weights.get('params', {}).get('llama', weights)
  return trees.nbytes(weights) - trees.nbytes(base['tokens'])


def _network(shapes: Shapes, lora, **more) -> Vlm:
  cfg = VlmConfig(name='bench', llama=shapes.llama, dtype=shapes.dtype, **more)  # type: ignore
  return Vlm(cfg, lora)


@functools.cache
def _shipped_weights(shapes: Shapes, with_lora: bool, residency: Any):
  """Shapes, or arrays, of a base and of an adapter."""
  model = _network(shapes, LORA if with_lora else None)
  mesh = sharding.make_mesh(Mesh(data=1), jax.devices()[:1])
  base = layouts.described_base(
    model.cfg, mesh, 'llama', held=Quant(residency=residency)
  )
  tree = {'params': base}
  if with_lora:
    tree['lora'] = layouts.described_adapter(model.cfg, LORA, mesh, shapes.dtype)
  return lambda described: _plain(tree) if described else _arrays(tree)


def _plain(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _arrays(tree, scale: float = 0.02):
  """Random arrays for shapes; norms are ones."""

  def one(path, x):
    name = jax.tree_util.keystr(path)
    if 'norm' in name:
      return jnp.ones(x.shape, x.dtype)
    if x.dtype == jnp.uint8:
      return _filled(len(name), x)
    return random(len(name), *x.shape, dtype=str(x.dtype), scale=scale)

  return jax.tree_util.tree_map_with_path(one, tree)


def _some_cache(key: int, *shape: int):
  """A cache that is no constant to the compiler, which chooses its layout."""
  few = 0.5 * jax.random.normal(
    jax.random.key(key), (1,) * (len(shape) - 1) + shape[-1:]
  )
  return jnp.broadcast_to(few.astype(jnp.bfloat16), shape) + jnp.bfloat16(0)


def _shipped(shapes: Shapes, lora: LoraConfig | None, residency: Any = 'native'):
  """Weights, and `decode.sample`'s loop over them from some position on."""
  model, rows, slots = _network(shapes, lora), shapes.rows, shapes.length
  settings = sampler.Sampling(shapes.answer, eos=-1)

  def steps(variables, first, count):
    keys = sampler.example_keys(jax.random.key(0), jnp.arange(rows))
    cfg = shapes.llama
    shape = (cfg.layers, rows, cfg.kv_heads, slots, cfg.head_dim)
    past = _some_cache(0, *shape), _some_cache(1, *shape)
    hidden = jnp.ones((rows, cfg.width), shapes.dtype)
    seen = jnp.arange(slots)[None] < shapes.prompt
    seen = jnp.broadcast_to(seen, (rows, slots))

    def advance(number, carry):
      hidden, past, _ = carry
      position = first + number
      logits = vlm.logits(model, variables, hidden)
      fold = jax.vmap(lambda key: jax.random.fold_in(key, number))
      token, logprob = sampler.draw(fold(keys), logits, settings)
      slot = jnp.arange(slots)[None]
      visible = seen | ((slot >= shapes.prompt) & (slot < position))
      mask = jnp.pad(visible, ((0, 0), (0, 1)), constant_values=True)[:, None]
      at = jnp.full((rows, 1), position)
      hidden, new = vlm.extend(model, variables, token[:, None], at, mask, past)
      put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis=3)
      return hidden[:, 0], jax.tree.map(put, past, new), logprob

    start = hidden, past, jnp.zeros(rows)
    hidden, _, logprob = jax.lax.fori_loop(0, count, advance, start)
    return hidden, logprob

  return _shipped_weights(shapes, lora is not None, residency), steps


@functools.cache
def _listed_weights(shapes: Shapes):
  """An array a layer: the adapter merged, q k v one matrix, gate and up one."""
  cfg, dtype = shapes.llama, jnp.dtype(shapes.dtype)
  inner = cfg.heads * cfg.head_dim
  one = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
  norm = jax.ShapeDtypeStruct((cfg.width,), jnp.float32)
  layer = {
    'qkv': one(inner + 2 * cfg.kv_heads * cfg.head_dim, cfg.width),
    'o': one(cfg.width, inner),
    'gate_up': one(2 * cfg.mlp, cfg.width),
    'down': one(cfg.width, cfg.mlp),
    'attn_norm': norm,
    'mlp_norm': norm,
  }
  tree = {
    'layers': [dict(layer) for _ in range(cfg.layers)],
    'tokens': one(cfg.vocab, cfg.width),
    'head': one(cfg.vocab, cfg.width),
    'final_norm': norm,
  }
  return lambda described: tree if described else _arrays(tree)


def _unrolled(shapes: Shapes, reader: str):
  """The same loop without a scan over layers, and with the cache an array a layer.

  Args:
    reader: of the cache: 'XLA', our 'kernel', or 'cudnn' ('jax.nn' without a card).
  """
  cfg, rows, slots = shapes.llama, shapes.rows, shapes.even
  settings = sampler.Sampling(shapes.answer, eos=-1)
  heads, dim, inner = cfg.heads, cfg.head_dim, cfg.heads * cfg.head_dim
  by_slot = reader == 'cudnn'  # [B, S, G, K], else [B, G, S, K]
  put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1 if by_slot else 2)

  def attend(q, new_k, new_v, k, v, position):
    """`[B, H, 1, K]`, and the caches with the new token in them."""
    after = put(k, new_k, position), put(v, new_v, position)
    if reader == 'XLA':
      mask = jnp.arange(slots + 1)[None, None]
      mask = jnp.broadcast_to((mask < position) | (mask == slots), (rows, 1, slots + 1))
      return layers.attend(q, new_k, new_v, mask, (k, v), causal=True), after
    if by_slot:
      lengths = jnp.full(rows, position + 1, jnp.int32)
      out = jax.nn.dot_product_attention(
        jnp.swapaxes(q, 1, 2),
        *after,
        key_value_seq_lengths=lengths,
        implementation='cudnn' if on_gpu() else None,
      )
      return out, after
    more = {} if on_gpu() else {'interpret': True, 'block': 16}
    start, (keys, values) = jnp.zeros(rows, jnp.int32), (x[None] for x in after)
    out = kernels.attend(
      q[:, :, 0], keys, values, jnp.int32(0), start, position + 1, **more
    )
    return out, after

  def layer(x, w, k, v, position, rotation):
    h = layers.rms_norm(x, w['attn_norm'], cfg.eps)
    q, new_k, new_v = (
      part.reshape(rows, heads, 1, dim)
      for part in jnp.split(layers.linear(h, w['qkv']), 3, axis=-1)
    )
    q, new_k = (layers.rope(part, rotation) for part in (q, new_k))
    if by_slot:
      new_k, new_v = (jnp.swapaxes(part, 1, 2) for part in (new_k, new_v))
    h, (k, v) = attend(q, new_k, new_v, k, v, position)
    x = x + layers.linear(h.reshape(rows, inner), w['o'])
    h = layers.rms_norm(x, w['mlp_norm'], cfg.eps)
    gate, up = jnp.split(layers.linear(h, w['gate_up']), 2, axis=-1)
    return x + layers.linear(jax.nn.silu(gate) * up, w['down']), k, v

  def steps(weights, first, count):
    keys = sampler.example_keys(jax.random.key(0), jnp.arange(rows))
    shape = (rows, slots, heads, dim) if by_slot else (rows, heads, slots, dim)
    past = [
      (_some_cache(2 * i, *shape), _some_cache(2 * i + 1, *shape))
      for i in range(cfg.layers)
    ]

    def advance(number, carry):
      hidden, past, _ = carry
      position = first + number
      h = layers.rms_norm(hidden, weights['final_norm'], cfg.eps)
      logits = layers.linear(h, weights['head']).astype(jnp.float32)
      fold = jax.vmap(lambda key: jax.random.fold_in(key, number))
      token, logprob = sampler.draw(fold(keys), logits, settings)
      x = jnp.take(weights['tokens'], token, axis=0, mode='clip')
      at = jnp.full((rows, 1), position)
      rotation = layers.rotations(at, dim, cfg.rope_theta, x.dtype)
      after = []
      for w, (k, v) in zip(weights['layers'], past, strict=True):
        x, k, v = layer(x, w, k, v, position, rotation)
        after.append((k, v))
      return x, after, logprob

    start = jnp.ones((rows, cfg.width), shapes.dtype), past, jnp.zeros(rows)
    hidden, _, logprob = jax.lax.fori_loop(0, count, advance, start)
    return hidden, logprob

  return _listed_weights(shapes), steps


# ---------------------------------------------------------------- phases of PPO


def phase(size: str, name: str) -> None:
  """A phase of PPO as `bench phases` runs it: one card's share of eight."""
  rows = {'rollout': 32, 'score': 32, 'update': 16}[name]
  arguments = [f'--config=configs/ppo.py:{size}', f'--only={name}']
  ppo = {'rollout_batch': rows, 'step_batch': 16, 'micro_batch': 8, 'epochs': 1}
  if size == 'tiny':
    ppo |= {'rollout_batch': 4, 'step_batch': 4, 'micro_batch': 4}
    ppo |= {'response_tokens': 8, 'eval_prompts': 4}
  arguments += [f'--config.ppo.{field}={value}' for field, value in ppo.items()]
  sys.argv = [sys.argv[0], *arguments]  # where ml_collections looks for fields
  flags.FLAGS(sys.argv)

  def each(found: str, row: dict) -> None:
    seconds = row['seconds']
    more = {'floor': row['floor'], 'planned GB': row['planned_bytes'] / 1e9}
    more['compiled in'] = row['compiled']
    note(found, seconds=seconds, flops=row['flops'], rows=ppo['rollout_batch'],
         **more, **peak())  # fmt: skip

  bench_phases.phases(1, each)


# ---------------------------------------------------------------- a LoRA step


def train(size: str) -> None:
  """A supervised step on text, at PyTorch's shape: the base in bf16, then in NF4."""
  shapes = SHAPES[size]
  rows, length, llama = shapes.train_rows, shapes.length, shapes.llama
  model = _network(shapes, LORA, remat='full')
  mesh = sharding.make_mesh(Mesh(data=1), jax.devices()[:1])
  ids = np.random.default_rng(0).integers(3, llama.vocab, (rows, length), np.int32)
  batch = {
    'ids': jnp.asarray(ids),
    'target': jnp.broadcast_to(jnp.arange(length) >= shapes.prompt, ids.shape),
    'tokens': jnp.zeros((rows, 1, llama.width), shapes.dtype),  # no slot: text alone
  }
  optimizer = optim.make_optimizer(Optim())
  needed, _ = flops.training(llama, LORA, length, shapes.answer)

  def one(name, residency):
    held = Quant(residency=residency)
    described = layouts.described_base(model.cfg, mesh, 'llama', held=held)
    base = _arrays(described)
    trained = {'lora': bases.init_adapter(model.cfg, LORA, jax.random.key(1))}
    where = layouts.trainable(model.cfg, LORA, mesh, trained)
    state = layouts.start(trained, where, optimizer, 0, mesh)
    step = supervised.program(
      lambda t, b, part, key: supervised.loss(model, b, t, part, key),
      optimizer,
      optim.learning_rate(Optim(), 1000),
      1,
      mesh,
      state,
      base,
    )
    clock = time.perf_counter()
    state, metrics = step(state, base, batch)
    jax.block_until_ready(metrics)
    first, best = time.perf_counter() - clock, float('inf')
    for _ in range(ROUNDS):
      clock = time.perf_counter()
      state, metrics = step(state, base, batch)
      jax.block_until_ready(metrics)
      best = min(best, time.perf_counter() - clock)
    note(
      f'LoRA step, {name}', seconds=best, flops=rows * needed, rows=rows, first=first,
      loss=float(metrics['loss']), **peak(),
    )  # fmt: skip

  for name, residency in (('bf16', 'native'), ('NF4', 'nf4')):
    attempt(f'LoRA step, {name}', functools.partial(one, name, residency))


# ---------------------------------------------------------------- merged, beside


def gap(size: str) -> None:
  """Nats a token between an adapter beside its base and merged into it, in bf16."""
  shapes = SHAPES[size]
  rows, length = (4, 512) if size == '7b' else (2, 32)
  model = _network(shapes, LORA)
  weights = _shipped_weights(shapes, True, 'native')(False)
  base, adapter = weights['params'], weights['lora']
  # As at the start of a training from nothing: with all weights alike, the network
  # would magnify every rounding from layer to layer.
  calm = (2 * shapes.llama.layers) ** -0.5
  for name in ('o', 'down'):
    part = base['llama']['layers'][name]
    part['w'] = part['w'] * jnp.asarray(calm, part['w'].dtype)
  ids = jax.random.randint(jax.random.key(5), (rows, length), 3, shapes.llama.vocab)
  visual = jnp.zeros((rows, 1, shapes.llama.width), shapes.dtype)

  @jax.jit
  def logp(variables, ids, visual):
    return supervised.answer_log_probabilities(model, variables, ids, ids != 0, visual)

  @jax.jit
  def merged(w, a, b):
    to = lambda x: x.astype(jnp.float32)
    add = jnp.einsum('lor,lri->loi', to(b), to(a), precision='highest')
    return (to(w) + LORA.alpha / LORA.rank * add).astype(w.dtype)

  beside = logp({'params': base, 'lora': adapter}, ids, visual)
  alone = logp({'params': base, 'lora': adapter}, ids[:1], visual[:1])
  plain = logp({'params': base}, ids, visual)
  changed = {
    name: {**part, 'w': merged(part['w'], *(adapter['llama']['layers'][name][m]
                                            for m in 'ab'))}
    if name in adapter['llama']['layers']
    else part
    for name, part in base['llama']['layers'].items()
  }  # fmt: skip
  joined = {'llama': {**base['llama'], 'layers': changed}}
  away = lambda a, b: float(jnp.mean(jnp.abs(a - b)))
  note(
    'merged and beside',
    nats=away(logp({'params': joined}, ids, visual), beside),
    **{
      'another batch size': away(alone, beside[:1]),
      'what the adapter changes': away(plain, beside),
      'mean log-probability': float(jnp.mean(beside)),
    },
  )


WORK = {
  'ceilings': ceilings,
  'attention': attention,
  'decode_attention': decode_attention,
  'products': products,
  'decode': decode,
  **{
    name: functools.partial(phase, name=name) for name in ('rollout', 'score', 'update')
  },
  'train': train,
  'gap': gap,
}

if __name__ == '__main__':
  serve(WORK)
