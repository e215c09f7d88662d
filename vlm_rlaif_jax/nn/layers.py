"""Layers of CLIP and LLaMA: pure functions, and linen modules that name their weights.

Every weight is declared once, with its shape and its logical axes; `core.sharding`
turns the axes into a sharding. The collection `params` is the pretrained base, `lora`
the adapter; a caller of `apply` chooses an adapter by the tree that it passes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core.quant.product import Layer, Leaf, product
from vlm_rlaif_jax.settings.models import LoraConfig

FEW_LAYERS = 4
# Outputs of a block's products, and the input of the second norm: with these, the
# backward pass repeats no product with a base weight. It computes attention again in
# any case, because what the gradient of attention needs has no name.
SAVED = ('q', 'k', 'v', 'between', 'gate', 'up')

normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


# ---------------------------------------------------------------- functions


def linear(
  x: jax.Array,
  kernel: jax.Array | Leaf | Layer,
  adapter: tuple[jax.Array, jax.Array] | None = None,
  *,
  scale: float = 1.0,
  adapter_x: jax.Array | None = None,
  inner: jax.Array | None = None,
  inp: str | None = None,
) -> jax.Array:
  """Computes x Wᵀ + scale (x Aᵀ) Bᵀ  (LoRA: Hu et al. 2021, eq. 3).

  Args:
    x: `[..., in]`.
    kernel: W, `[out, in]`: an array, or a 4-bit weight (`core.quant`), which gets no
      gradient.
    adapter: None, or (A `[rank, in]`, B `[out, rank]`).
    scale: alpha / rank.
    adapter_x: input of the adapter, if not x (x after dropout).
    inner: x Aᵀ, `[..., rank]`, if it has been computed.
    inp: logical name of the input axis, by which a 4-bit weight is sharded.

  Returns:
    `[..., out]` in the dtype of x.
  """
  if isinstance(kernel, Leaf | Layer):
    y = product(x, kernel, inp)
  else:
    y = jnp.einsum('...i,oi->...o', x, kernel.astype(x.dtype))
  if adapter is None:
    return y
  a, b = (leaf.astype(x.dtype) for leaf in adapter)
  if inner is None:
    inner = jnp.einsum('...i,ri->...r', x if adapter_x is None else adapter_x, a)
  return y + _expand(inner * jnp.asarray(scale, x.dtype), b)


@jax.custom_vjp
def _expand(inner: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies `[..., rank]` by B `[out, rank]`.

  The gradient of B is computed as (innerᵀ g)ᵀ. For JAX's own gradient, gᵀ inner, XLA
  for CPUs copies all of g transposed, which is out / rank times as large.
  """
  return jnp.einsum('...r,or->...o', inner, b)


def _expand_backward(
  residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
  inner, b = residuals
  transposed = jnp.einsum('...r,...o->ro', inner, g)
  # Without the barrier XLA rewrites the product as gᵀ inner.
  transposed = jax.lax.optimization_barrier(transposed)
  return jnp.einsum('...o,or->...r', g, b), transposed.T


_expand.defvjp(lambda inner, b: (_expand(inner, b), (inner, b)), _expand_backward)


@jax.custom_vjp
def product_in_float32(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns x Wᵀ of 16-bit x and W `[out, in]` as it is summed, `float32[..., out]`.

  Rounded to bfloat16, two logits of the size of 20 that differ by less than 0.06 may be
  equal. The gradient's products are in 16 bits, as those of other layers.
  """
  return jnp.einsum('...i,oi->...o', x, w, preferred_element_type=jnp.float32)


def _backward_in_16_bits(
  residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, w = residuals
  g = g.astype(x.dtype)
  return jnp.einsum('...o,oi->...i', g, w), jnp.einsum('...o,...i->oi', g, x)


product_in_float32.defvjp(
  lambda x, w: (product_in_float32(x, w), (x, w)), _backward_in_16_bits
)


def expand_to_last_axis(vector: jax.Array, x: jax.Array) -> jax.Array:
  """Reshapes `[D]` to `[1, ..., D]`, to broadcast along the last axis of x.

  Implicit rank promotion is an error in the tests.
  """
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """Returns x / rms(x) * scale, computed in float32; Zhang and Sennrich 2019."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  return (y * expand_to_last_axis(scale, x).astype(jnp.float32)).astype(x.dtype)


def layer_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
  """Returns (x - mean) / std * scale + bias, computed in float32."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, -1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  y = y * expand_to_last_axis(scale, x).astype(jnp.float32) + expand_to_last_axis(
    bias, x
  ).astype(jnp.float32)
  return y.astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
  """Returns x sigmoid(1.702 x), the activation that CLIP was trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


# ---------------------------------------------------------------- modules


def declare(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  init: Callable,
  collection: str = 'params',
) -> Any:
  """Declares a weight with logical axes and returns its value.

  It calls `variable` because `param` refuses a value that is not one array, such as a
  quantized weight.
  """

  def boxed():
    value = init(module.make_rng('params'), shape, jnp.float32)
    return nn.LogicallyPartitioned(value, axes)

  return module.variable(collection, name, boxed).value


class Linear(nn.Module):
  """`linear` with weights W `[out, in]`, and A `[rank, in]`, B `[out, rank]` of LoRA.

  A starts uniform in ±1/sqrt(in) and B at zero, as in peft. Dropout applies to the
  adapter's input, and only if the caller passes a `dropout` key.

  Attributes:
    features: width of the output.
    axes: logical names of the input and output axes.
    float32: whether the result is not rounded to the dtype of the input.
  """

  features: int
  axes: tuple[str, str]
  bias: bool = False
  float32: bool = False
  lora: LoraConfig | None = None
  init: Callable = normal

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    stacked_weight: Layer | None = None,
    inner: jax.Array | None = None,
  ) -> jax.Array:
    """Applies the layer, `[..., in]` -> `[..., out]`.

    Args:
      stacked_weight: the weight declared here as a layer of the stack of all layers,
        read in place instead of the copy that the scan makes.
      inner: x Aᵀ, `[..., rank]`, if it has been computed, without dropout.
    """
    inp, out = self.axes
    fan_in = x.shape[-1]
    kernel = declare(self, 'w', (self.features, fan_in), (out, inp), self.init)
    if self.float32 and x.dtype != jnp.float32:
      return product_in_float32(x, kernel.astype(x.dtype))
    kernel = kernel if stacked_weight is None else stacked_weight
    adapter, scale, adapter_x = None, 1.0, None
    if self.lora is not None and (
      self.is_initializing() or self.has_variable('lora', 'a')
    ):
      rank = self.lora.rank

      def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        limit = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

      a = declare(self, 'a', (rank, fan_in), ('rank', inp), uniform, 'lora')
      b = declare(self, 'b', (self.features, rank), (out, 'rank'), zeros, 'lora')
      adapter, scale = (a, b), self.lora.alpha / rank
      if self.lora.dropout and self.has_rng('dropout'):
        adapter_x = nn.Dropout(self.lora.dropout, deterministic=False)(x)
    y = linear(
      x, kernel, adapter, scale=scale, adapter_x=adapter_x, inner=inner, inp=inp
    )
    if self.bias:
      bias = declare(self, 'bias', (self.features,), (out,), zeros)
      y = y + expand_to_last_axis(bias, y).astype(y.dtype)
    return y


class Weight(nn.Module):
  """One named array: an embedding table, a class token, a temperature."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Callable = normal

  @nn.compact
  def __call__(self) -> jax.Array:
    return declare(self, 'w', self.shape, self.axes, self.init)


class RmsNorm(nn.Module):
  """`rms_norm` with a named scale."""

  eps: float
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
  """`layer_norm` with named scale and bias."""

  eps: float
  axis: str = 'vision'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    bias = declare(self, 'bias', x.shape[-1:], (self.axis,), zeros)
    return layer_norm(x, scale, bias, self.eps)


def stack(
  block: type[nn.Module],
  length: int,
  in_axes: Any,
  *,
  remat: str = 'none',
  unroll: bool = False,
) -> Callable[..., Any]:
  """Scans a block over `length` layers; its weights get a leading layer axis.

  Args:
    block: a linen class whose call is `(x, *args) -> (x, output of the layer)`.
    in_axes: for each of args, `nn.broadcast` or its axis of layers.
    remat: what the backward pass keeps: 'none' recomputes nothing, 'dots' keeps the
      products without a batch dimension (not those with 4-bit weights, which have a
      gradient of their own), 'names' keeps the arrays that the block names as in
      `SAVED`, 'full' keeps only the block's input.
    unroll: whether to unroll up to `FEW_LAYERS` layers, for which stacking the
      residuals of the gradient costs more time than a loop saves in compilation.
  """
  if remat != 'none':
    policy = {
      'full': jax.checkpoint_policies.nothing_saveable,
      'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      'names': jax.checkpoint_policies.save_only_these_names(*SAVED),
    }[remat]
    block = nn.remat(block, policy=policy, prevent_cse=False)
  return nn.scan(
    block,
    length=length,
    unroll=length if unroll and length <= FEW_LAYERS else 1,
    variable_axes={'params': 0, 'lora': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=in_axes,
    metadata_params={nn.PARTITION_NAME: 'layer'},
  )
