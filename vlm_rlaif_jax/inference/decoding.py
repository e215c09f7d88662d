"""Decoding on GPUs: a layer after the other without a loop, weights read where they
are, a cache an array a layer.

    held    (base, adapter) -> Weights, once a rollout
    sample  prompts -> answers, as `sampler.sample`, whose loop and draws it uses

    weights   what multiplies x in a layer's linears              7B, beside the base
    merged    W + s B A in 16 bits                                13.5 GB
    beside    a packed W where it is; then B (A x)                0.3 GB
              W in 16 bits, cut out of the stack; then B (A x)    13.5 GB

In 16 bits q, k and v are one matrix, gate and up another. In a scan over layers XLA
cuts every layer's weights out of their stack before it multiplies by them, and starts
the loop's body anew 32 times a token; without one a step is one graph of about ten
kernels a layer. Where the scan is the better program (`held` says where), or weights
are split over devices, everything is `sampler.sample`'s.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding, target
from vlm_rlaif_jax.core.quant.product import Layer, Leaf, product
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.sampler import Answers, Sampling
from vlm_rlaif_jax.nn import attention, cache, layers, packed, vlm
from vlm_rlaif_jax.nn.vlm import Vlm

How = Literal['beside', 'merged']


@flax.struct.dataclass
class Linears:
  """Linears that read the same x; their outputs stand one after the other.

  Attributes:
    kernel: `[in, sum of out]`, or packed ones where they lie in their stacks.
    a: A of those that have an adapter, `[sum of rank, in]`; None: none has.
    b: of each linear, s B `[out, rank]`; None where it has no adapter.
    widths: of the outputs.
  """

  kernel: jax.Array | tuple[Layer, ...]
  a: jax.Array | None
  b: tuple[jax.Array | None, ...]
  widths: tuple[int, ...] = flax.struct.field(pytree_node=False)

  def __call__(self, x) -> list[jax.Array]:
    """`[..., in]` -> the outputs, `[..., out]` each."""
    if isinstance(self.kernel, tuple):
      found = [product(x, kernel) for kernel in self.kernel]
    else:
      found = _split(jnp.einsum('...i,io->...o', x, self.kernel), self.widths)
    if self.a is None:
      return found
    inner = jnp.einsum('...i,ri->...r', x, self.a)
    inner = _split(inner, [b.shape[1] for b in self.b if b is not None])
    return [
      y if b is None else y + jnp.einsum('...r,or->...o', inner.pop(0), b)
      for y, b in zip(found, self.b, strict=True)
    ]


def _split(x, widths) -> list[jax.Array]:
  ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
  return jnp.split(x, ends, axis=-1)


@flax.struct.dataclass
class Decoder:
  """One layer."""

  attn_norm: jax.Array
  qkv: Linears
  o: Linears
  mlp_norm: jax.Array
  gate_up: Linears
  down: Linears


JOINED = {'qkv': ('q', 'k', 'v'), 'o': ('o',), 'gate_up': ('gate', 'up')}
JOINED['down'] = ('down',)


@flax.struct.dataclass
class Weights:
  """A network as a decoding step reads it.

  Attributes:
    rest: embeddings, head and last norm, `{'llama': ...}`.
  """

  rest: dict
  layers: tuple[Decoder, ...]


def applies() -> bool:
  """Whether programs for the chip at hand decode as this module does.

  On GPUs, where every device has all weights.
  """
  mesh = jax.sharding.get_abstract_mesh()
  whole = mesh.empty or mesh.size == mesh.shape.get('data', 1)
  return target.platform() == 'gpu' and whole


def held(
  model: Vlm, variables: dict, how: How, unrolled: bool | None = None
) -> Weights | dict:
  """What to sample from: `Weights`, or variables for `sampler.sample`.

  Args:
    variables: `{'params': base, 'lora': adapter}`, or the base alone.
    unrolled: which of both; None: as `applies` says.
  """
  llama = variables['params']['llama']
  adapter = variables.get('lora', {}).get('llama', {}).get('layers', {})
  adapter = jax.tree.map(lambda x: x.astype(model.cfg.dtype), adapter)
  merges = how == 'merged' and bool(adapter)
  if not (applies() if unrolled is None else unrolled):
    return _merged_variables(model, variables, adapter) if merges else variables
  made, number, before = [], 0, ()
  for number in range(model.cfg.llama.layers):
    index = jnp.int32(number)
    if how == 'merged':
      # One after the other: what is unpacked on the way would fill a device.
      index, _ = jax.lax.optimization_barrier((index, before))
    one = _decoder(model, llama['layers'], adapter, index, how)
    before = jax.tree.leaves(one)
    made.append(one)
  rest = {name: part for name, part in llama.items() if name != 'layers'}
  return Weights({'llama': rest}, tuple(made))


def _decoder(model: Vlm, stacks: dict, adapter: dict, index, how: How) -> Decoder:
  """One layer, out of the stacks."""
  cut = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)

  def linears(names: tuple[str, ...]) -> Linears:
    kernels = [Layer(stacks[name]['w'], index) for name in names]
    widths = tuple(_width(kernel) for kernel in kernels)
    pairs = [jax.tree.map(cut, adapter.get(name)) for name in names]
    if how == 'merged':
      parts = [_merged(model, *both) for both in zip(kernels, pairs, strict=True)]
      return Linears(jnp.concatenate(parts, 1), None, (None,) * len(names), widths)
    a = [pair['a'] for pair in pairs if pair]
    scaled = lambda b: b * jnp.asarray(_scale(model), b.dtype)
    if all(isinstance(kernel.stack, Leaf) for kernel in kernels):
      kernel = tuple(kernels)
    else:
      parts = [_merged(model, kernel, None) for kernel in kernels]
      kernel = jnp.concatenate(parts, 1)
    return Linears(
      kernel,
      jnp.concatenate(a, 0) if a else None,
      tuple(scaled(pair['b']) if pair else None for pair in pairs),
      widths,
    )

  return Decoder(
    attn_norm=cut(stacks['attn_norm']['scale']),
    mlp_norm=cut(stacks['mlp_norm']['scale']),
    **{joined: linears(names) for joined, names in JOINED.items()},
  )


def _width(kernel: Layer) -> int:
  packed = isinstance(kernel.stack, Leaf)
  return kernel.stack.shape[0 if packed else 1]


def _merged(model: Vlm, kernel: Layer, pair):
  """W + s B A of a layer, `[in, out]`, rounded once; operands as training rounds them.

  Args:
    pair: None, or the adapter's A and B.
  """
  dtype = model.cfg.dtype
  w = kernel.cut()
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
  """The base with the adapter in it, stacked as it was."""
  llama = variables['params']['llama']

  def one(index):
    cut = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
    merged = lambda name: _merged(
      model,
      Layer(llama['layers'][name]['w'], index),
      jax.tree.map(cut, adapter.get(name)),
    )
    return {name: {'w': merged(name).T} for names in JOINED.values() for name in names}

  stacked = jax.lax.map(one, jnp.arange(model.cfg.llama.layers))
  merged = {**llama, 'layers': {**llama['layers'], **stacked}}
  return {'params': {**variables['params'], 'llama': merged}}


def sample(
  model: Vlm, weights: Weights | dict, ids, valid, visual, keys, settings: Sampling
) -> Answers:
  """As `sampler.sample`, from what `held` returns."""
  if not isinstance(weights, Weights):
    return sampler.sample(model, weights, ids, valid, visual, keys, settings)
  with jax.named_scope('rollout/prefill'):
    hidden, valid, past = _prefill(model, weights, ids, valid, visual, keys, settings)
  length = valid.shape[1]
  start = jnp.where(jnp.any(valid, 1), jnp.argmax(valid, 1), length).astype(jnp.int32)

  def extend(token, step, past, done):
    position = length + step
    stop = jnp.where(done, 0, position + 1).astype(jnp.int32)
    return _step(model, weights, token, position, start, stop, past)

  logits = lambda hidden: vlm.logits(model, {'params': weights.rest}, hidden)
  with jax.named_scope('rollout/decode'):
    return sampler.decode(hidden, past, logits, extend, keys, settings)


def _prefill(model: Vlm, weights: Weights, ids, valid, visual, keys, settings):
  """Reads the prompts once.

  Returns:
    the last hidden state `[B, D]` of each answer to be, `bool[B, M]` and the cache,
    with room for the answers.
  """
  cfg = model.cfg.llama
  text = _embedded(model, weights, ids)
  x, valid = vlm.splice(ids, valid, text, visual)
  length, copies = x.shape[1], keys.shape[0] // ids.shape[0]
  positions = jnp.broadcast_to(jnp.arange(length), valid.shape)
  where = None
  if packed.implementation(x.dtype, cfg.head_dim) is not None:
    where = packed.packing(valid)
    x, positions = packed.pack(x, where), packed.pack(positions, where)
  rotation = attention.rotations(positions, cfg.head_dim, cfg.rope_theta, x.dtype)
  mask = attention.causal_mask(valid) if where is None else None
  room = cache.slots(length + settings.max_tokens) - length
  past = []

  def held(new):
    new = new if where is None else packed.unpack(new, where, length)
    new = jnp.repeat(new, copies, axis=0)
    new = jnp.pad(new, ((0, 0), (0, room), (0, 0), (0, 0)))
    return sharding.constrain(new, 'batch', 'length', 'kv_heads', None)

  def attend(q, k, v):
    past.append((held(k), held(v)))
    if where is not None:
      return packed.attend(q, k, v, where.rows)
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
    mixed = attention.attend(q, k, v, mask, causal=True)
    return jnp.swapaxes(mixed, 1, 2)

  for layer in weights.layers:
    x = _block(model, layer, x, rotation, attend)
    # Into the cache at once: until the end, all keys would be there twice.
    x, past[-1] = jax.lax.optimization_barrier((x, past[-1]))
  x = x[:, -1] if where is None else packed.unpack(x, where, length)[:, -1]
  last = _last_norm(model, weights, x)
  return *(jnp.repeat(part, copies, axis=0) for part in (last, valid)), tuple(past)


def _step(model: Vlm, weights: Weights, token, position, start, stop, past):
  """One token a row through all layers: `[B, D]`, and the cache with it."""
  cfg = model.cfg.llama
  x = _embedded(model, weights, token[:, None])
  places = jnp.broadcast_to(position, (len(token), 1))
  rotation = attention.rotations(places, cfg.head_dim, cfg.rope_theta, x.dtype)
  after = []
  for layer, (keys, values) in zip(weights.layers, past, strict=True):

    def attend(q, k, v, keys=keys, values=values):
      keys, values = cache.write(keys, k, position), cache.write(values, v, position)
      after.append((keys, values))
      return cache.attend(q[:, 0], keys, values, start, stop)[:, None]

    x = _block(model, layer, x, rotation, attend)
  return _last_norm(model, weights, x[:, 0]), tuple(after)


def _embedded(model: Vlm, weights: Weights, ids):
  """`int32[B, T]` -> `[B, T, D]`."""
  table = weights.rest['llama']['tokens']['w']
  return jnp.take(table, ids, axis=0, mode='clip').astype(model.cfg.dtype)


def _last_norm(model: Vlm, weights: Weights, x):
  scale = weights.rest['llama']['final_norm']['scale']
  return layers.rms_norm(x, scale, model.cfg.llama.eps)


def _block(model: Vlm, layer: Decoder, x, rotation, attend: Callable[..., Any]):
  """`llama.Block` on `[B, T, D]`, with heads where the cache has them.

  Args:
    attend: q `[B, T, H, K]`, k and v `[B, T, G, K]` -> `[B, T, H, K]`.
  """
  cfg = model.cfg.llama
  h = layers.rms_norm(x, layer.attn_norm, cfg.eps)
  q, k, v = (part.reshape(*h.shape[:2], -1, cfg.head_dim) for part in layer.qkv(h))
  q, k = (attention.rope(part, rotation, heads_axis=2) for part in (q, k))
  mixed = attend(q, k, v).reshape(*h.shape[:2], -1)
  x = x + layer.o(mixed)[0]
  h = layers.rms_norm(x, layer.mlp_norm, cfg.eps)
  gate, up = layer.gate_up(h)
  x = x + layer.down(jax.nn.silu(gate) * up)[0]
  return sharding.constrain(x, 'batch', 'length', 'stream')
