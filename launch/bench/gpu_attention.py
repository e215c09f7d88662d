"""Attention without a model around it: of training, and of one new token."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench import gpu_kernels
from launch.bench.gpu_process import note
from launch.bench.gpu_shapes import SHAPES, Shapes
from launch.bench.gpu_timing import (
  SAME_BITS,
  Program,
  compile_all,
  on_gpu,
  random,
  relative_error,
  temporaries,
  timed,
)
from vlm_rlaif_jax.nn.attention import attend, causal_mask

Caches = list[tuple[jax.Array, jax.Array]]
# (block, shares, warps) of the kernel that are tried on a GPU
TRIED = (
  *((block, shares, 4) for block in (32, 64) for shares in (1, 2, 4, 8)),
  *((64, 1, 8), (64, 2, 8), (128, 1, 8), (128, 2, 8), (32, 1, 2), (32, 2, 2)),
)


def library() -> str:
  """Returns the name of JAX's attention on this device: cuDNN's on a GPU."""
  return 'cudnn' if on_gpu() else 'jax.nn'


# ---------------------------------------------------------------- training


def attention(size: str) -> None:
  """Times ours and cuDNN's: `[B, T, H, K]` of a training step, and CLIP's tower."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  rows, heads, dim = shapes.train_rows, llama.heads, llama.head_dim
  programs: dict[str, Program] = {}
  flops: dict[str, float] = {}

  # Programs
  for length in (shapes.length, shapes.padded_length):
    q, k, v, g = _random_qkvg(rows, length, heads, dim)
    forward = 2 * length**2 * dim * heads * rows  # half of the square
    for who, function in (
      ('ours', _ours),
      (library(), _library),
      (f'{library()} without lengths', functools.partial(_library, lengths=False)),
    ):
      function = functools.partial(function, causal=True)
      gradients = functools.partial(_gradients, function)
      name = f'{who}, T={length}'
      programs[name] = function, (q, k, v), None
      programs[f'{name}, with gradient'] = gradients, (q, k, v, g), None
      strict = f'{name}, with gradient, same bits'
      programs[strict] = gradients, (q, k, v, g), SAME_BITS
      flops |= {name: forward, f'{name}, with gradient': 3.5 * forward}
      flops[strict] = 3.5 * forward
  tower = (32, 577, 16, 64) if size == '7b' else (2, 17, 2, 64)
  q, k, v, _ = _random_qkvg(*tower)
  for who, function in (('ours', _ours), (library(), _library)):
    function = functools.partial(function, causal=False)
    programs[f'{who}, CLIP'] = function, (q, k, v), None
    flops[f'{who}, CLIP'] = 4 * tower[0] * tower[1] ** 2 * tower[2] * tower[3]

  # Times, whether two calls agree, and how far the library is from ours
  results = {}
  for name, run in compile_all(programs).items():
    call = functools.partial(run, *programs[name][1])
    first, second = call(), call()
    same = all(bool(jnp.array_equal(a, b)) for a, b in _leaf_pairs(first, second))
    figures = {'twice the same': same} if 'gradient' in name else {}
    seconds = timed(call, shapes.repeats)
    note(name, seconds=seconds, flops=flops[name], **figures, GB=temporaries(run))
    if 'same bits' in name:
      continue
    results[name] = first
    ours = results.get('ours' + name.removeprefix(library()))
    if name.startswith(f'{library()}, ') and ours is not None:
      error = max(relative_error(a, b) for a, b in _leaf_pairs(ours, first))
      note(f'{name}, from ours', apart=error)


def _random_qkvg(rows: int, length: int, heads: int, dim: int) -> list[jax.Array]:
  return [random(i, rows, length, heads, dim) for i in range(4)]


def _ours(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
  """Computes our attention; the transposes to `[B, H, T, K]` are part of a layer."""
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  mask = causal_mask(jnp.ones(q.shape[:1] + q.shape[2:3], bool)) if causal else None
  return jnp.swapaxes(attend(q, k, v, mask, causal=causal), 1, 2)


def _library(
  q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, lengths: bool = True
) -> jax.Array:
  """Computes JAX's attention; with lengths of rows, as packed rows need them."""
  row_lengths = None
  if causal and lengths:
    row_lengths = jnp.full(q.shape[0], q.shape[1], jnp.int32)
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    is_causal=causal,
    query_seq_lengths=row_lengths,
    key_value_seq_lengths=row_lengths,
    implementation='cudnn' if on_gpu() else None,
  )


def _gradients(
  function: Callable, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array
) -> tuple[jax.Array, ...]:
  out, back = jax.vjp(function, q, k, v)
  return out, *back(g)


def _leaf_pairs(first: Any, second: Any) -> list[tuple]:
  return list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


# ---------------------------------------------------------------- decoding


def decode_attention(size: str) -> None:
  """Times one new token over the cache: seconds a layer, by layout and by kernel.

  `scan` is a scan over stacked layers, as in our decoding; otherwise each layer has an
  array of its own.
  """
  shapes = SHAPES[size]
  filled = shapes.prompt + shapes.response // 2  # slots in the middle of a response
  slot_bytes = 4 * shapes.rows * shapes.llama.kv_heads * shapes.llama.head_dim
  programs, slots = _xla_programs(shapes, filled)
  kernels = _kernel_programs(shapes)
  expected = None
  for name, run in compile_all({**programs, **kernels}).items():
    is_kernel = name in kernels
    arguments = (kernels if is_kernel else programs)[name][1]
    count = slots.get(name, shapes.padded_length)
    seconds = _seconds_a_layer(run, arguments, shapes)
    figures = {}
    if is_kernel:
      if expected is None:
        expected = jax.jit(_reference)(*arguments)
      figures['apart'] = relative_error(run(*arguments), expected)
    nbytes = slot_bytes * count
    note(name, seconds=seconds, bytes=nbytes, GB=temporaries(run), **figures)
    if is_kernel:
      seconds = _seconds_a_layer(run, (*arguments[:-1], jnp.int32(filled)), shapes)
      note(f'{name}, {filled} filled', seconds=seconds, bytes=slot_bytes * filled)


def _seconds_a_layer(run: Callable, arguments: tuple, shapes: Shapes) -> float:
  call = functools.partial(run, *arguments)
  return timed(call, shapes.repeats) / shapes.stacked


def _random_cache(shapes: Shapes, slots: int, keys: str, values: str) -> tuple:
  """Returns keys and values with the axes of two strings, like 'lbgsk'."""
  sizes = {
    'l': shapes.stacked,
    'b': shapes.rows,
    'g': shapes.llama.kv_heads,
    's': slots,
    'k': shapes.llama.head_dim,
  }
  return tuple(
    random(i, *(sizes[axis] for axis in axes)) for i, axes in enumerate((keys, values))
  )


def _random_query(shapes: Shapes) -> jax.Array:
  return random(0, shapes.rows, shapes.llama.kv_heads, 1, shapes.llama.head_dim)


def _xla_programs(
  shapes: Shapes, filled: int
) -> tuple[dict[str, Program], dict[str, int]]:
  """Returns programs without our kernel, and the slots that each reads."""
  q, slots = _random_query(shapes), shapes.padded_length
  programs: dict[str, Program] = {}
  slots_read = {}
  for length in (shapes.length, shapes.padded_length):
    cache = _random_cache(shapes, length, 'lbgsk', 'lbgsk')
    name = f'XLA, scan, [L,B,G,S,K], S={length}'
    programs[name] = _xla_scan, (q, *cache), None
    rollout_cache = _random_cache(shapes, length, 'bgslk', 'bgkls')
    rollout_name = f'XLA, scan, [B,G,S,L,K], S={length}'
    programs[rollout_name] = _xla_scan_of_rollout, (q, *rollout_cache), None
    slots_read |= {name: length, rollout_name: length}
  by_slot, by_head = (
    [_random_cache(shapes, slots, axes, axes) for _ in range(shapes.stacked)]
    for axes in ('bsgk', 'bgsk')
  )
  programs[f'XLA, [B,S,G,K], S={slots}'] = _xla_by_slot, (q, by_slot), None
  programs[f'XLA, [B,G,S,K], S={slots}'] = _xla_by_head, (q, by_head), None
  if on_gpu():
    lengths = jnp.full(shapes.rows, filled, jnp.int32)
    name = f'cudnn, [B,S,G,K], {filled} of {slots}'
    programs[name] = _cudnn, (q, by_slot, lengths), None
    slots_read[name] = filled
  return programs, slots_read


def _kernel_programs(shapes: Shapes) -> dict[str, Program]:
  """Returns programs with our kernel; the last argument is where the slots end."""
  slots = shapes.padded_length
  arguments = (
    _random_query(shapes),
    *_random_cache(shapes, slots, 'lbgsk', 'lbgsk'),
    jnp.zeros(shapes.rows, jnp.int32),
    jnp.int32(slots),
  )
  programs: dict[str, Program] = {}
  for block, shares, warps in TRIED if on_gpu() else [(16, 2, 4)]:
    options = {'block': block, 'shares': shares, 'warps': warps}
    function = functools.partial(_kernel, **options, interpret=not on_gpu())
    name = f'kernel, block {block}, shares {shares}, warps {warps}'
    programs[name] = function, arguments, None
  return programs


def _xla_scan(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Scans layers as `nn.llama` does: the new token is not part of the cache yet."""
  mask = jnp.ones((q.shape[0], 1, k.shape[3] + 1), bool)

  def layer(q: jax.Array, past: tuple) -> tuple[jax.Array, None]:
    return attend(q, q, q, mask, past, causal=True), None

  return jax.lax.scan(layer, q, (k, v))[0]


def _xla_scan_of_rollout(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Does the same from the layouts that XLA chooses for the cache of a rollout."""
  return _xla_scan(
    q, jnp.transpose(k, (3, 0, 1, 2, 4)), jnp.transpose(v, (3, 0, 1, 4, 2))
  )


def _xla_by_head(q: jax.Array, pasts: Caches) -> jax.Array:
  mask = jnp.ones((q.shape[0], 1, pasts[0][0].shape[2] + 1), bool)
  for past in pasts:
    q = attend(q, q, q, mask, past, causal=True)
  return q


def _xla_by_slot(q: jax.Array, pasts: Caches) -> jax.Array:
  return _xla_by_head(q, jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), pasts))


def _cudnn(q: jax.Array, pasts: Caches, lengths: jax.Array) -> jax.Array:
  q = jnp.swapaxes(q, 1, 2)
  for k, v in pasts:
    q = jax.nn.dot_product_attention(
      q, k, v, key_value_seq_lengths=lengths, implementation='cudnn'
    )
  return q


def _kernel(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  start: jax.Array,
  stop: jax.Array,
  **options: Any,
) -> jax.Array:
  q = q[:, :, 0]
  for layer in range(k.shape[0]):
    q = gpu_kernels.attend(q, k, v, jnp.int32(layer), start, stop, **options)
  return q


def _reference(
  q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, stop: jax.Array
) -> jax.Array:
  q = q[:, :, 0]
  for layer in range(k.shape[0]):
    q = gpu_kernels.reference(q, k, v, layer, start, stop).astype(q.dtype)
  return q
