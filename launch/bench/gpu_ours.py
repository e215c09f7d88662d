"""Our side of `bench gpu`: ceilings, parts of a layer, decoding, phases, a LoRA step.

Each item is a function of the size ('7b', or 'tiny' for a CPU) that calls `note`.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as command_flags

from launch.bench import phases
from launch.bench.gpu_attention import attention, decode_attention
from launch.bench.gpu_decode import abstract_weights, decode, network
from launch.bench.gpu_process import attempt, note, serve
from launch.bench.gpu_shapes import LORA, ROUNDS, SHAPES
from launch.bench.gpu_timing import (
  CUBLAS,
  SAME_BITS,
  Program,
  compile_all,
  gpu_options,
  on_gpu,
  peak,
  random,
  random_like,
  random_weights,
  timed,
)
from launch.train import settings_of_flags
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import kernel, nf4, product
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import flops as ppo_flops
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import MeshConfig, OptimConfig, QuantConfig
from vlm_rlaif_jax.train import optim, shardings, supervised
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.weights import adapters

SCHEDULE_STEPS = 1000  # of the learning rate; no time depends on it


# ---------------------------------------------------------------- ceilings


def ceilings(size: str) -> None:
  """Times what bounds everything else: a copy, a read and a matrix product."""
  shapes = SHAPES[size]
  x = random(0, shapes.copied)
  seconds = timed(functools.partial(jax.jit(jnp.negative), x), shapes.repeats)
  note('jax copy', seconds=seconds, bytes=2 * x.nbytes)
  row_max = jax.jit(lambda x: jnp.max(x.reshape(-1, 128), axis=1))
  seconds = timed(functools.partial(row_max, x), shapes.repeats)
  note('jax read', seconds=seconds, bytes=x.nbytes + x.nbytes // 128)
  n = shapes.matmul
  a, b = random(1, n, n), random(2, n, n)
  for name, options in (('jax matmul', None), ('jax matmul, same bits', SAME_BITS)):
    matmul = jax.jit(jnp.matmul, compiler_options=gpu_options(options))
    seconds = timed(functools.partial(matmul, a, b), shapes.repeats)
    note(name, seconds=seconds, flops=2 * n**3)


# ---------------------------------------------------------------- products of decoding


def products(size: str) -> None:
  """Times x Wᵀ of a decoding step: bf16 by cuBLAS and by XLA, NF4 by our kernel."""
  shapes, llama = SHAPES[size], SHAPES[size].llama
  width, mlp, count = llama.width, llama.mlp, 2 * shapes.stacked
  sides = {
    'q': (width, width),
    'q k v': (3 * width, width),
    'gate': (mlp, width),
    'gate up': (2 * mlp, width),
    'down': (width, mlp),
  }
  programs: dict[str, Program] = {}
  nbytes = {}
  for name, (out, inp) in sides.items():
    x = [random(i, shapes.rows, inp) for i in range(count)]
    weights = [random(i, out, inp, scale=0.02) for i in range(count)]
    for label, options in (('cuBLAS', CUBLAS), ('as XLA likes', None)):
      programs[f'{name}, bf16, {label}'] = _products, (x, weights), options
      plain_bytes = 2 * (out * inp + shapes.rows * (out + inp))
      nbytes[f'{name}, bf16, {label}'] = plain_bytes
    if ' ' in name:  # the kernel multiplies them one by one
      continue
    leaf = _random_nf4(count, out, inp)
    programs[f'{name}, NF4 kernel'] = _nf4_products, (x, leaf), None
    programs[f'{name}, NF4 unpacked by XLA'] = _nf4_unpacked, (x, leaf), CUBLAS
    for label in ('kernel', 'unpacked by XLA'):
      nbytes[f'{name}, NF4 {label}'] = trees.nbytes(leaf) // count
  for name, run in compile_all(programs).items():
    call = functools.partial(run, *programs[name][1])
    seconds = timed(call, shapes.repeats) / count
    note(name, seconds=seconds, bytes=nbytes[name])


def _products(inputs: list[jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
  return [jnp.einsum('ri,oi->ro', x, w) for x, w in zip(inputs, weights, strict=True)]


def _random_nf4(count: int, out: int, inp: int) -> nf4.Nf4:
  """Returns random codes and scales, of the magnitude of quantized weights."""
  weight = jax.ShapeDtypeStruct((count, out, inp), jnp.bfloat16)
  shapes = jax.eval_shape(lambda w: nf4.quantize(w, through='float16'), weight)
  leaves, tree = jax.tree.flatten(shapes)
  return jax.tree.unflatten(tree, [random_like(i, x) for i, x in enumerate(leaves)])


def _nf4_products(inputs: list[jax.Array], leaf: nf4.Nf4) -> list[jax.Array]:
  return [
    kernel.product(x, leaf, jnp.int32(layer), interpret=not on_gpu())
    for layer, x in enumerate(inputs)
  ]


def _nf4_unpacked(inputs: list[jax.Array], leaf: nf4.Nf4) -> list[jax.Array]:
  def layer(index: int) -> nf4.Nf4:
    return jax.tree.map(lambda part: part[index], leaf)

  return [product.unpacked_product(x, layer(i)) for i, x in enumerate(inputs)]


# ---------------------------------------------------------------- phases of PPO


def phase(size: str, name: str) -> None:
  """Times a phase of PPO as `bench phases` does: one card's share of eight."""
  rows = {'rollout': 32, 'score': 32, 'update': 16}[name]
  arguments = [f'--config=configs/ppo.py:{size}', f'--only={name}']
  ppo = {'rollout_batch': rows, 'step_batch': 16, 'micro_batch': 8, 'epochs': 1}
  if size == 'tiny':
    ppo |= {'rollout_batch': 4, 'step_batch': 4, 'micro_batch': 4}
    ppo |= {'response_tokens': 8, 'eval_prompts': 4}
  arguments += [f'--config.ppo.{field}={value}' for field, value in ppo.items()]
  sys.argv = [sys.argv[0], *arguments]  # where ml_collections looks for fields
  command_flags.FLAGS(sys.argv)
  settings: Any = settings_of_flags()
  _, positions = ppo_flops.lengths(settings)

  def note_phase(phase_name: str, figures: dict[str, Any]) -> None:
    note(
      phase_name,
      seconds=figures['seconds'],
      flops=figures['flops'],
      rows=settings.ppo.rollout_batch,
      positions=positions,
      floor=figures['roofline_s'],
      **{'planned GB': figures['planned_bytes'] / 1e9},
      **{'compiled in': figures['compile_s']},
      **peak(),
    )

  phases.phases(1, note_phase)


# ---------------------------------------------------------------- a LoRA step


def train(size: str) -> None:
  """Times a supervised step on text, at PyTorch's shape: the base in bf16, in NF4."""
  for name, residency in (('bf16', 'native'), ('NF4', 'nf4')):
    row = f'LoRA step, {name}'
    attempt(row, functools.partial(_train, row, size, residency))


def _train(row: str, size: str, residency: Any) -> None:
  # Batch: text alone, no row has a slot for the visual token
  shapes = SHAPES[size]
  rows, length, llama = shapes.train_rows, shapes.length, shapes.llama
  ids = np.random.default_rng(0).integers(3, llama.vocab, (rows, length), np.int32)
  batch = {
    'ids': jnp.asarray(ids),
    'target': jnp.broadcast_to(jnp.arange(length) >= shapes.prompt, ids.shape),
    'visual': jnp.zeros((rows, 1, llama.width), shapes.dtype),
  }

  # Program
  model = network(shapes, remat='full')
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  optimizer = optim.make_optimizer(OptimConfig())
  quant = QuantConfig(residency=residency)
  base = random_weights(shardings.abstract_base(model.cfg, mesh, 'llama', quant=quant))
  trainable = {'lora': adapters.init_adapter(model.cfg, LORA, jax.random.key(1))}
  layout = shardings.trainable(model.cfg, LORA, mesh, trainable)
  state = shardings.start(trainable, layout, optimizer, 0, mesh)
  step = supervised.program(
    functools.partial(supervised.loss, model),
    optimizer,
    optim.learning_rate(OptimConfig(), SCHEDULE_STEPS),
    1,
    mesh,
    state,
    base,
  )

  # Times
  seconds, metrics = [], {}
  for _ in range(1 + ROUNDS):
    start = time.perf_counter()
    state, metrics = step(state, base, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - start)
  needed, _ = flops.training(llama, LORA, length, shapes.response)
  note(
    row,
    seconds=min(seconds[1:]),
    flops=rows * needed,
    rows=rows,
    positions=length,
    first=seconds[0],
    loss=float(metrics['loss']),
    **peak(),
  )


# ---------------------------------------------------------------- merged and beside


def gap(size: str) -> None:
  """Notes nats a token between an adapter beside its base and merged into it, bf16."""
  shapes = SHAPES[size]
  rows, length = (4, 512) if size == '7b' else (2, 32)
  model = network(shapes)
  weights = random_weights(abstract_weights(shapes))
  base, adapter = weights['params'], weights['lora']
  # Scaled as at the start of pretraining: with all weights alike, the network would
  # magnify every rounding from layer to layer.
  scale = (2 * shapes.llama.layers) ** -0.5
  for name in ('o', 'down'):
    part = base['llama']['layers'][name]
    part['w'] = part['w'] * jnp.asarray(scale, part['w'].dtype)
  ids = jax.random.randint(jax.random.key(5), (rows, length), 3, shapes.llama.vocab)
  visual = jnp.zeros((rows, 1, shapes.llama.width), shapes.dtype)
  logp = functools.partial(_logprobs, model)
  separate = logp({'params': base, 'lora': adapter}, ids, visual)
  alone = logp({'params': base, 'lora': adapter}, ids[:1], visual[:1])
  plain = logp({'params': base}, ids, visual)
  joined = logp({'params': _merged(base, adapter)}, ids, visual)

  def distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.mean(jnp.abs(a - b)))

  note(
    'merged and beside',
    nats=distance(joined, separate),
    **{
      'another batch size': distance(alone, separate[:1]),
      'what the adapter changes': distance(plain, separate),
      'mean log-probability': float(jnp.mean(separate)),
    },
  )


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(
  model: Vlm, variables: dict[str, Any], ids: jax.Array, visual: jax.Array
) -> jax.Array:
  return supervised.target_logprobs(model, variables, ids, ids != PAD, visual)


def _merged(base: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
  """Returns the base with the adapter merged into the linears of its layers."""
  layers = dict(base['llama']['layers'])
  for name, part in adapter['llama']['layers'].items():
    w = _merged_weight(layers[name]['w'], part['a'], part['b'])
    layers[name] = {**layers[name], 'w': w}
  return {'llama': {**base['llama'], 'layers': layers}}


@jax.jit
def _merged_weight(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns W + alpha / rank B A of all layers, added in float32."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  update = jnp.einsum('lor,lri->loi', b, a, precision='highest')
  return (w.astype(jnp.float32) + LORA.alpha / LORA.rank * update).astype(w.dtype)


ITEMS: dict[str, Callable[[str], None]] = {
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
  serve(ITEMS)
