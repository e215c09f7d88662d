"""A step of decoding through all layers, in the forms that it could have."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench import gpu_kernels
from launch.bench.gpu_attention import library
from launch.bench.gpu_process import note
from launch.bench.gpu_shapes import LORA, SHAPES, Shapes
from launch.bench.gpu_timing import (
  CUBLAS,
  compile_all,
  on_gpu,
  random_weights,
  temporaries,
  timed,
)
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.inference import draws, sampler
from vlm_rlaif_jax.nn import layers
from vlm_rlaif_jax.nn.attention import attend, rope, rotations
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.sections import MeshConfig, QuantConfig
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops


@dataclasses.dataclass(frozen=True)
class Form:
  """One form of the decode loop.

  Attributes:
    weights: a tree of shapes; forms with the same object share their arrays.
    steps: (weights, first position, number of steps) -> what the last step returns.
    options: of the compiler.
  """

  weights: Any
  steps: Callable[[Any, jax.Array, jax.Array], Any]
  options: dict | None = None


def decode(size: str) -> None:
  """Times a step through all layers, in the middle of a response.

  The loop is that of `sampler.sample`; a step is the difference between many steps and
  few, divided by their number.
  """
  shapes = SHAPES[size]
  many, few = (36, 4) if size == '7b' else (20, 2)
  first = shapes.prompt + shapes.response // 2 - many // 2
  cached = shapes.rows * flops.cache_bytes(shapes.llama) * (first + many // 2)
  forms = _forms(shapes)
  programs = {
    name: (form.steps, (form.weights, jnp.int32(first), jnp.int32(many)), form.options)
    for name, form in forms.items()
  }
  weights: Any = None
  arrays: Any = {}
  for name, run in compile_all(programs).items():
    if weights is not forms[name].weights:
      arrays = {}  # frees the memory first
      weights = forms[name].weights
      arrays = random_weights(weights)
    short, long = (_loop_seconds(run, arrays, first, count) for count in (few, many))
    note(
      name,
      seconds=(long - short) / (many - few),
      bytes=_weight_bytes(arrays) + cached,
      **{'GB of temporaries': temporaries(run)},
    )


def _loop_seconds(run: Callable, weights: Any, first: int, count: int) -> float:
  call = functools.partial(run, weights, jnp.int32(first), jnp.int32(count))
  return timed(call, repeats=1, rounds=2)


def _forms(shapes: Shapes) -> dict[str, Form]:
  """Returns the forms by name; those that share weights are neighbors."""
  adapted, listed = abstract_weights(shapes), _abstract_listed_weights(shapes)
  shipped = {
    with_lora: _shipped_steps(shapes, with_lora) for with_lora in (True, False)
  }
  forms = {
    'as shipped, NF4, LoRA beside': Form(
      abstract_weights(shapes, residency='nf4'), shipped[True]
    ),
    'as shipped, bf16, LoRA beside': Form(adapted, shipped[True]),
    'as shipped, bf16, LoRA beside, cuBLAS': Form(adapted, shipped[True], CUBLAS),
    'as shipped, bf16, merged, cuBLAS': Form(
      abstract_weights(shapes, with_lora=False), shipped[False], CUBLAS
    ),
  }
  readers = {'XLA attention': 'XLA', 'kernel': 'kernel', library(): 'library'}
  for label, reader in readers.items():
    steps = _unrolled_steps(shapes, reader)
    forms[f'unrolled, bf16, {label}, cuBLAS'] = Form(listed, steps, CUBLAS)
  return forms


def _weight_bytes(weights: dict[str, Any]) -> int:
  """Returns the bytes of all weights but the embeddings: a step reads few of those."""
  llama = weights.get('params', {}).get('llama', weights)
  return trees.nbytes(weights) - trees.nbytes(llama['tokens'])


def network(shapes: Shapes, with_lora: bool = True, remat: Any = 'none') -> Vlm:
  """Returns the network of our side."""
  cfg = VlmConfig(
    name='bench',
    llama=shapes.llama,
    dtype=shapes.dtype,  # type: ignore[arg-type]
    remat=remat,
  )
  return Vlm(cfg, LORA if with_lora else None)


def abstract_weights(
  shapes: Shapes, with_lora: bool = True, residency: Any = 'native'
) -> dict[str, Any]:
  """Returns the variables of the network as shapes, a base and an adapter."""
  cfg = network(shapes, with_lora).cfg
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  quant = QuantConfig(residency=residency)
  tree = {'params': shardings.abstract_base(cfg, mesh, 'llama', quant=quant)}
  if with_lora:
    tree['lora'] = shardings.abstract_adapter(cfg, LORA, mesh, shapes.dtype)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _cache(key: int, *shape: int) -> jax.Array:
  """Returns a cache that is no constant to the compiler, which chooses its layout."""
  last = (1,) * (len(shape) - 1) + shape[-1:]
  values = 0.5 * jax.random.normal(jax.random.key(key), last)
  return jnp.broadcast_to(values.astype(jnp.bfloat16), shape) + jnp.bfloat16(0)


def _fold_in(keys: jax.Array, number: jax.Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _example_keys(rows: int) -> jax.Array:
  return sampler.example_keys(jax.random.key(0), jnp.arange(rows))


# ---------------------------------------------------------------- as shipped


def _shipped_steps(shapes: Shapes, with_lora: bool) -> Callable:
  """Returns a loop of `sampler.decode_step`, from some position on."""
  model, rows, cfg = network(shapes, with_lora), shapes.rows, shapes.llama
  sampling = sampler.Sampling(shapes.response, eos=-1)
  cache_shape = (cfg.layers, rows, cfg.kv_heads, shapes.length, cfg.head_dim)

  def steps(variables: Any, first: jax.Array, count: jax.Array) -> tuple:
    prompt_mask = jnp.arange(shapes.length)[None] < shapes.prompt
    state = sampler.DecodeState(
      step=jnp.int32(first - shapes.prompt),
      hidden=jnp.ones((rows, cfg.width), shapes.dtype),
      cache=(_cache(0, *cache_shape), _cache(1, *cache_shape)),
      prompt_mask=jnp.broadcast_to(prompt_mask, (rows, shapes.length)),
      finished=jnp.zeros(rows, bool),
    )
    keys = _example_keys(rows)

    def advance(_: jax.Array, carry: tuple) -> tuple:
      state, _ = carry
      state, _, logprob = sampler.decode_step(model, variables, keys, sampling, state)
      return state, logprob

    start = state, jnp.zeros(rows)
    state, logprob = jax.lax.fori_loop(0, count, advance, start)
    return state.hidden, logprob

  return steps


# ---------------------------------------------------------------- unrolled


def _abstract_listed_weights(shapes: Shapes) -> dict[str, Any]:
  """Returns shapes with an array a layer: merged, q k v fused, gate and up fused."""
  cfg, inner = shapes.llama, shapes.llama.heads * shapes.llama.head_dim

  def matrix(out: int, inp: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((out, inp), shapes.dtype)

  norm = jax.ShapeDtypeStruct((cfg.width,), jnp.float32)
  layer = {
    'qkv': matrix(inner + 2 * cfg.kv_heads * cfg.head_dim, cfg.width),
    'o': matrix(cfg.width, inner),
    'gate_up': matrix(2 * cfg.mlp, cfg.width),
    'down': matrix(cfg.width, cfg.mlp),
    'attn_norm': norm,
    'mlp_norm': norm,
  }
  return {
    'layers': [dict(layer) for _ in range(cfg.layers)],
    'tokens': matrix(cfg.vocab, cfg.width),
    'head': matrix(cfg.vocab, cfg.width),
    'final_norm': norm,
  }


def _unrolled_steps(shapes: Shapes, reader: str) -> Callable:
  """Returns the loop without a scan over layers, with a cache an array a layer.

  Args:
    reader: of the cache: 'XLA', our 'kernel', or the 'library', see `gpu_attention`.
  """
  cfg, rows, slots = shapes.llama, shapes.rows, shapes.padded_length
  heads, dim, inner = cfg.heads, cfg.head_dim, cfg.heads * cfg.head_dim
  sampling = sampler.Sampling(shapes.response, eos=-1)
  by_slot = reader == 'library'  # [B, S, G, K], else [B, G, S, K]
  read = {
    'XLA': _read_with_xla, 'kernel': _read_with_kernel, 'library': _read_with_library
  }[reader]  # fmt: skip

  def layer(x: jax.Array, w: dict, cache: tuple, position: Any, rotation: Any) -> tuple:
    h = layers.rms_norm(x, w['attn_norm'], cfg.eps)
    q, k, v = (
      part.reshape(rows, heads, 1, dim)
      for part in jnp.split(layers.linear(h, w['qkv']), 3, axis=-1)
    )
    q, k = (rope(part, rotation) for part in (q, k))
    h, cache = read(q, k, v, cache, position)
    x = x + layers.linear(h.reshape(rows, inner), w['o'])
    h = layers.rms_norm(x, w['mlp_norm'], cfg.eps)
    gate, up = jnp.split(layers.linear(h, w['gate_up']), 2, axis=-1)
    return x + layers.linear(jax.nn.silu(gate) * up, w['down']), cache

  def steps(weights: Any, first: jax.Array, count: jax.Array) -> tuple:
    keys = _example_keys(rows)
    shape = (rows, slots, heads, dim) if by_slot else (rows, heads, slots, dim)
    caches = [
      (_cache(2 * i, *shape), _cache(2 * i + 1, *shape)) for i in range(cfg.layers)
    ]

    def advance(number: jax.Array, carry: tuple) -> tuple:
      hidden, caches, _ = carry
      position = first + number
      h = layers.rms_norm(hidden, weights['final_norm'], cfg.eps)
      logits = layers.linear(h, weights['head']).astype(jnp.float32)
      token, logprob = draws.draw(_fold_in(keys, number), logits, sampling)
      x = jnp.take(weights['tokens'], token, axis=0, mode='clip')
      positions = jnp.full((rows, 1), position)
      rotation = rotations(positions, dim, cfg.rope_theta, x.dtype)
      after = []
      for w, cache in zip(weights['layers'], caches, strict=True):
        x, cache = layer(x, w, cache, position, rotation)
        after.append(cache)
      return x, after, logprob

    start = jnp.ones((rows, cfg.width), shapes.dtype), caches, jnp.zeros(rows)
    hidden, _, logprob = jax.lax.fori_loop(0, count, advance, start)
    return hidden, logprob

  return steps


def _put(cache: tuple, new: tuple, position: jax.Array, axis: int) -> tuple:
  return tuple(
    jax.lax.dynamic_update_slice_in_dim(old, x, position, axis)
    for old, x in zip(cache, new, strict=True)
  )


def _read_with_xla(
  q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple, position: jax.Array
) -> tuple:
  """Returns `[B, H, 1, K]`, and the cache `[B, G, S, K]` with the new token."""
  rows, slots = q.shape[0], cache[0].shape[2]
  slot = jnp.arange(slots + 1)[None, None]
  mask = jnp.broadcast_to((slot < position) | (slot == slots), (rows, 1, slots + 1))
  out = attend(q, k, v, mask, cache, causal=True)
  return out, _put(cache, (k, v), position, 2)


def _read_with_kernel(
  q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple, position: jax.Array
) -> tuple:
  """Returns `[B, H, K]`, and the cache `[B, G, S, K]` with the new token."""
  cache = _put(cache, (k, v), position, 2)
  options: dict[str, Any] = {} if on_gpu() else {'interpret': True, 'block': 16}
  start = jnp.zeros(q.shape[0], jnp.int32)
  keys, values = (x[None] for x in cache)
  out = gpu_kernels.attend(
    q[:, :, 0], keys, values, jnp.int32(0), start, position + 1, **options
  )
  return out, cache


def _read_with_library(
  q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple, position: jax.Array
) -> tuple:
  """Returns `[B, 1, H, K]`, and the cache `[B, S, G, K]` with the new token."""
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  cache = _put(cache, (k, v), position, 1)
  out = jax.nn.dot_product_attention(
    q,
    *cache,
    key_value_seq_lengths=jnp.full(q.shape[0], position + 1, jnp.int32),
    implementation='cudnn' if on_gpu() else None,
  )
  return out, cache
