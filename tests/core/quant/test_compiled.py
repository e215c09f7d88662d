"""What compilers make of a scanned decode step with packed weights, for absent chips.

Needs libtpu (extra [tpu]) or the CUDA plugin (extra [gpu]); no device of the kind.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.compilers import GPU, TPU
from vlm_rlaif_jax.core import chips, trees
from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.core.quant.product import Layer, product
from vlm_rlaif_jax.nn.llama import Llama
from vlm_rlaif_jax.settings.models import LlamaConfig

LAYERS, ROWS, OUT, IN, SLOTS = 2, 32, 11008, 4096, 64
# The most of the largest matrix, unpacked to bfloat16, that may be in device memory,
# with a product alone and with a whole layer; as it is packed it would be 0.26. On v5e
# weights are unpacked on chip, for A100 in the registers of the kernel, which leaves
# sums of shares of the inputs (8 MB for `gate` and for `up`) to be added up. XLA for
# v5p writes halves, of several matrices at a time: nf4_bf16 is the residency for fast
# decoding there.
UNPACKED = {'v5e': (0.02, 0.15), 'v5p': (0.6, 2.2), 'a100': (0.1, 0.25)}


def first_device(target: str):
  if target == 'a100':
    made = topologies.get_topology_desc(
      platform='cuda',
      target_config=(chips.FOLDER / 'a100.txtpb').read_text(),
      topology='1x1x1',
    )
  else:
    name = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1'}[target]
    made = topologies.get_topology_desc(platform='tpu', topology_name=name)
  return made.devices[0]


def abstract(target: str):
  """(shape, dtype) -> an argument on a device of the target."""
  mesh = Mesh(np.array([first_device(target)]), ('x',))
  whole = NamedSharding(mesh, PartitionSpec())
  return lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)


def stacked(shaped, out: int, inp: int, double: bool = True) -> nf4.Nf4:
  one = jax.eval_shape(
    lambda w: nf4.quantize(w, double, 'float16'),
    jax.ShapeDtypeStruct((out, inp), 'float32'),
  )
  return jax.tree.map(lambda x: shaped((LAYERS, *x.shape), x.dtype), one)


TARGETS = pytest.mark.parametrize(
  'target',
  [
    pytest.param('v5e', marks=TPU),
    pytest.param('v5p', marks=TPU),
    pytest.param('a100', marks=GPU),
  ],
)


@pytest.mark.parametrize('double', [False, True], ids=['single', 'double'])
@TARGETS
def test_weights_stay_packed_in_device_memory(target, double):
  """One wide product a layer: arguments are as many bytes as the leaf, and little is
  unpacked at a time."""
  shaped = abstract(target)
  leaf = stacked(shaped, OUT, IN, double)

  def step(x, leaf):
    body = lambda x, i: (x + product(x, Layer(leaf, i))[:, :IN], None)
    return jax.lax.scan(body, x, jnp.arange(LAYERS))[0]

  x = shaped((ROWS, IN), jnp.bfloat16)
  memory = jax.jit(step).trace(x, leaf).lower().compile().memory_analysis()
  arguments, packed = memory.argument_size_in_bytes - 2 * ROWS * IN, trees.nbytes(leaf)
  print(f'{target}: {packed} packed, {arguments}, {memory.temp_size_in_bytes}')
  assert arguments <= 1.002 * packed
  assert 8 * arguments / (LAYERS * OUT * IN) <= (4.13 if double else 4.51)
  assert memory.temp_size_in_bytes <= UNPACKED[target][0] * 2 * OUT * IN


@TARGETS
def test_the_decoding_loop_reads_packed_weights(target):
  """Layers of LLaMA 7B over a KV cache: beside the cache, which is carried as in
  `decode`, the loop has little or no room for unpacked weights."""
  cfg = LlamaConfig(
    vocab=128, width=IN, mlp=OUT, layers=LAYERS, heads=32, kv_heads=32, head_dim=128
  )
  shaped, model = abstract(target), Llama(cfg)
  one = jnp.zeros((1, 1), jnp.int32)
  init = lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 1, IN)), one, one[..., None]
  )
  params = meta.unbox(jax.eval_shape(init))['params']
  weights = {
    name: stacked(shaped, *x.shape[1:]) if x.ndim == 3 else shaped(x.shape, jnp.float32)
    for name, x in trees.flatten(params).items()
  }
  past = (LAYERS, ROWS, cfg.kv_heads, SLOTS, cfg.head_dim)

  def loop(params, x, steps):
    def advance(number, state):
      x, cache = state
      visible = jnp.arange(SLOTS + 1) < number
      mask = jnp.broadcast_to(visible.at[-1].set(True), (ROWS, 1, SLOTS + 1))
      position = jnp.full((ROWS, 1), number)
      x, new = model.apply({'params': params}, x, position, mask, cache)
      put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, number, 3)
      return x, jax.tree.map(put, cache, new)

    cache = (jnp.zeros(past, x.dtype),) * 2
    return jax.lax.fori_loop(0, steps, advance, (x, cache))[0]

  arguments = trees.unflatten(weights), shaped((ROWS, 1, IN), jnp.bfloat16)
  traced = jax.jit(loop).trace(*arguments, shaped((), jnp.int32))
  memory = traced.lower().compile().memory_analysis()
  cache = 2 * 2 * math.prod(past)
  print(
    f'{target}: {trees.nbytes(arguments[0])} packed, {cache} cache, '
    f'{memory.temp_size_in_bytes} temporary'
  )
  assert memory.argument_size_in_bytes <= 1.01 * trees.nbytes(arguments)
  unpacked = UNPACKED[target][1] * 2 * OUT * IN
  assert memory.temp_size_in_bytes - cache <= unpacked
