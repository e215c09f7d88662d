"""Prepares the weights that decoding on GPUs reads, a layer at a time.

    weights   what multiplies x in a layer's linears              7B, beyond the base
    merged    W + s B A in 16 bits                                13.5 GB
    beside    a 4-bit W in its stack; then B (A x)                0.3 GB
              W in 16 bits, sliced out of its stack; then B (A x) 13.5 GB

In 16 bits q, k and v are one matrix, gate and up another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.core.quant.product import Layer, Leaf, product
from vlm_rlaif_jax.nn.vlm import Vlm

How = Literal['beside', 'merged']


@flax.struct.dataclass
class Linears:
  """Linears that read the same x, with their outputs side by side.

  Attributes:
    kernel: `[in, sum of out]`, or 4-bit weights inside their stacks.
    a: A of those that have an adapter, `[sum of rank, in]`; None: none has.
    b: of each linear, s B `[out, rank]`; None where it has no adapter.
    widths: of the outputs.
  """

  kernel: jax.Array | tuple[Layer, ...]
  a: jax.Array | None
  b: tuple[jax.Array | None, ...]
  widths: tuple[int, ...] = flax.struct.field(pytree_node=False)

  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """`[..., in]` -> the outputs, `[..., out]` each."""
    if isinstance(self.kernel, tuple):
      outputs = [product(x, kernel) for kernel in self.kernel]
    else:
      outputs = _split(jnp.einsum('...i,io->...o', x, self.kernel), self.widths)
    if self.a is None:
      return outputs
    inner = jnp.einsum('...i,ri->...r', x, self.a)
    inner = _split(inner, [b.shape[1] for b in self.b if b is not None])
    return [
      y if b is None else y + jnp.einsum('...r,or->...o', inner.pop(0), b)
      for y, b in zip(outputs, self.b, strict=True)
    ]


def _split(x: jax.Array, widths: Sequence[int]) -> list[jax.Array]:
  ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
  return jnp.split(x, ends, axis=-1)


@flax.struct.dataclass
class DecoderLayer:
  """The weights of one layer."""

  attn_norm: jax.Array
  qkv: Linears
  o: Linears
  mlp_norm: jax.Array
  gate_up: Linears
  down: Linears


JOINED = {
  'qkv': ('q', 'k', 'v'), 'o': ('o',), 'gate_up': ('gate', 'up'), 'down': ('down',)
}  # fmt: skip


@flax.struct.dataclass
class Weights:
  """A network as a decoding step reads it.

  Attributes:
    rest: embeddings, head and last norm, `{'llama': ...}`.
    layers: one entry a layer.
  """

  rest: dict
  layers: tuple[DecoderLayer, ...]


def applies() -> bool:
  """Returns whether programs for this chip decode without a scan over layers.

  They do on GPUs, if every device has all weights.
  """
  mesh = jax.sharding.get_abstract_mesh()
  replicated = mesh.empty or mesh.size == mesh.shape.get('data', 1)
  return target.platform() == 'gpu' and replicated


def affords_copy(variables: dict) -> bool:
  """Returns whether `applies`, and there is room for a copy of the layers.

  With 16-bit weights twice, a quarter of the memory has to be left for the rest.
  """
  stacks = variables['params']['llama']['layers']
  linears = [stacks[name]['w'] for names in JOINED.values() for name in names]
  copied = 2 * sum(w.size for w in linears if not isinstance(w, Leaf))
  return applies() and 2 * copied <= 0.75 * target.memory()


def prepare(
  model: Vlm, variables: dict, how: How, unrolled: bool | None = None
) -> Weights | dict:
  """Returns what `decoding.sample` reads: `Weights`, or variables for `sampler.sample`.

  Args:
    variables: `{'params': base, 'lora': adapter}`, or the base alone.
    how: whether the adapter is merged into the base.
    unrolled: whether to return `Weights`; None: if `applies`.
  """
  llama = variables['params']['llama']
  adapter = variables.get('lora', {}).get('llama', {}).get('layers', {})
  adapter = jax.tree.map(lambda x: x.astype(model.cfg.dtype), adapter)
  merges = how == 'merged' and bool(adapter)
  if not (applies() if unrolled is None else unrolled):
    return _merged_variables(model, variables, adapter) if merges else variables
  decoder, previous = [], ()
  for number in range(model.cfg.llama.layers):
    index = jnp.int32(number)
    if how == 'merged':
      # In sequence: the unpacked weights of all layers at once would fill a device.
      index, _ = jax.lax.optimization_barrier((index, previous))
    layer = _layer(model, llama['layers'], adapter, index, how)
    previous = jax.tree.leaves(layer)
    decoder.append(layer)
  rest = {name: part for name, part in llama.items() if name != 'layers'}
  return Weights({'llama': rest}, tuple(decoder))


def _layer(
  model: Vlm, stacks: dict, adapter: dict, index: jax.Array, how: How
) -> DecoderLayer:
  """Returns one layer out of the stacks."""

  def linears(names: tuple[str, ...]) -> Linears:
    kernels = [Layer(stacks[name]['w'], index) for name in names]
    widths = tuple(_width(kernel) for kernel in kernels)
    pairs = [_slice(adapter.get(name), index) for name in names]
    if how == 'merged':
      parts = [_merged(model, *both) for both in zip(kernels, pairs, strict=True)]
      return Linears(jnp.concatenate(parts, 1), None, (None,) * len(names), widths)
    a = [pair['a'] for pair in pairs if pair]
    b = [
      pair['b'] * jnp.asarray(_scale(model), pair['b'].dtype) if pair else None
      for pair in pairs
    ]
    if all(isinstance(kernel.stack, Leaf) for kernel in kernels):
      kernel = tuple(kernels)
    else:
      parts = [_merged(model, kernel, None) for kernel in kernels]
      kernel = jnp.concatenate(parts, 1)
    return Linears(kernel, jnp.concatenate(a, 0) if a else None, tuple(b), widths)

  return DecoderLayer(
    attn_norm=_slice(stacks['attn_norm']['scale'], index),
    mlp_norm=_slice(stacks['mlp_norm']['scale'], index),
    **{joined: linears(names) for joined, names in JOINED.items()},
  )


def _slice(stacked: Any, index: jax.Array) -> Any:
  """Returns one layer of a tree of stacked arrays."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), stacked
  )


def _width(kernel: Layer) -> int:
  return kernel.stack.shape[0 if isinstance(kernel.stack, Leaf) else 1]


def _merged(model: Vlm, kernel: Layer, pair: dict | None) -> jax.Array:
  """Returns W + s B A of a layer, `[in, out]`, rounded once.

  Operands are rounded as in training.

  Args:
    pair: the adapter's A and B; None: there is none.
  """
  dtype = model.cfg.dtype
  w = kernel.slice()
  w = w.dequantize(dtype) if isinstance(w, Leaf) else w
  w = jnp.swapaxes(w, 0, 1).astype(dtype)
  if not pair:
    return w
  added = jnp.einsum(
    'ri,or->io', pair['a'], pair['b'], preferred_element_type=jnp.float32
  )
  return (w.astype(jnp.float32) + _scale(model) * added).astype(dtype)


def _scale(model: Vlm) -> float:
  assert model.lora is not None
  return model.lora.alpha / model.lora.rank


def _merged_variables(model: Vlm, variables: dict, adapter: dict) -> dict:
  """Returns the base with the adapter merged into it, stacked as before."""
  llama = variables['params']['llama']
  linears = [name for names in JOINED.values() for name in names]

  def merge_layer(index: jax.Array) -> dict:
    return {
      name: {
        'w': _merged(
          model,
          Layer(llama['layers'][name]['w'], index),
          _slice(adapter.get(name), index),
        ).T
      }
      for name in linears
    }

  stacked = jax.lax.map(merge_layer, jnp.arange(model.cfg.llama.layers))
  merged = {**llama, 'layers': {**llama['layers'], **stacked}}
  return {'params': {**variables['params'], 'llama': merged}}
