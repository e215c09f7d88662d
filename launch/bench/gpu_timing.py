"""Compiling, timing and random arrays for our side of `bench gpu`."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench.gpu_process import attempt, note
from launch.bench.gpu_shapes import ROUNDS

CUBLAS = {'xla_gpu_enable_triton_gemm': False}
SAME_BITS = {'xla_gpu_exclude_nondeterministic_ops': True}
COMPILE_THREADS = 8
# A function, its arguments (arrays or shapes), and compiler options for GPUs
Program = tuple[Callable[..., Any], tuple, dict | None]


def on_gpu() -> bool:
  """Returns whether JAX's default device is a GPU."""
  return jax.default_backend() == 'gpu'


def gpu_options(options: dict | None) -> dict | None:
  """Returns the compiler options on a GPU, and None elsewhere."""
  return options if on_gpu() else None


def compile_all(programs: dict[str, Program]) -> dict[str, Any]:
  """Compiles the programs in parallel, notes the seconds, and returns executables.

  A program that does not compile becomes a row and is left out.
  """

  def compile_one(program: Program) -> Any:
    function, arguments, options = program
    jitted = jax.jit(function, compiler_options=gpu_options(options))
    return jitted.lower(*arguments).compile()

  start = time.perf_counter()
  executables: dict[str, Any] = {}
  with concurrent.futures.ThreadPoolExecutor(COMPILE_THREADS) as pool:
    futures = {name: pool.submit(compile_one, p) for name, p in programs.items()}
    for name, future in futures.items():
      attempt(name, lambda n=name, f=future: executables.__setitem__(n, f.result()))
  note('compilation', seconds=time.perf_counter() - start)
  return executables


def timed(call: Callable[[], Any], repeats: int, rounds: int = ROUNDS) -> float:
  """Returns the seconds of one call in the fastest round, after an uncounted call."""
  jax.block_until_ready(call())
  best = float('inf')
  for _ in range(rounds):
    start, result = time.perf_counter(), None
    for _ in range(repeats):
      result = call()
    jax.block_until_ready(result)
    best = min(best, (time.perf_counter() - start) / repeats)
  return best


def temporaries(executable: Any) -> float:
  """Returns the temporary memory of an executable in GB."""
  return executable.memory_analysis().temp_size_in_bytes / 1e9


def peak() -> dict[str, float]:
  """Returns the most memory in use so far, as a figure of a row."""
  peak_bytes = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
  return {'GB': peak_bytes / 1e9} if peak_bytes else {}


def relative_error(a: jax.Array, b: jax.Array) -> float:
  """Returns ||a - b|| / ||b||."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def random(
  key: int, *shape: int, dtype: str = 'bfloat16', scale: float = 1.0
) -> jax.Array:
  """Returns normal numbers times `scale`."""
  return _random(jax.random.key(key), shape, dtype, scale)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random(
  key: jax.Array, shape: tuple[int, ...], dtype: str, scale: float
) -> jax.Array:
  return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def random_like(key: int, shape: jax.ShapeDtypeStruct, scale: float = 0.02) -> Any:
  """Returns random bytes for uint8, and normal numbers times `scale` otherwise."""
  if shape.dtype == jnp.uint8:
    bits = functools.partial(jax.random.bits, shape=shape.shape, dtype=jnp.uint8)
    return jax.jit(bits)(jax.random.key(key))
  return random(key, *shape.shape, dtype=str(shape.dtype), scale=scale)


def random_weights(shapes: Any, scale: float = 0.02) -> Any:
  """Returns random arrays for a tree of shapes; norms are ones."""

  def one(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
    name = jax.tree_util.keystr(path)
    if 'norm' in name:
      return jnp.ones(x.shape, x.dtype)
    return random_like(len(name), x, scale)

  return jax.tree_util.tree_map_with_path(one, shapes)
