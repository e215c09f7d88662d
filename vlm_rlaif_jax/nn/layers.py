"""Layers shared by CLIP and LLaMA: pure functions, and linen modules that name weights.

Every weight is declared once, with its shape and its logical axes; `core.sharding`
turns the axes into a layout. Collections hold the roles: `params` is the pretrained
base, `lora` the adapter, and the caller of `apply` chooses the adapter by the tree it
passes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core.quant.product import Layer, Leaf, product
from vlm_rlaif_jax.settings.models import LoraConfig

FEW_LAYERS = 4
# Outputs of a block's products, the second norm's input among them: with these the
# way back multiplies by no base weight again. Attention is computed anew in any case:
# what its gradient needs of it has no name.
SAVED = ('q', 'k', 'v', 'between', 'gate', 'up')

normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


# ---------------------------------------------------------------- functions


def linear(x, kernel, adapter=None, *, scale=1.0, adapter_x=None, inp=None):
  """y = x Wᵀ + scale (x Aᵀ) Bᵀ  (LoRA: Hu et al. 2021, eq. 3).

  Args:
    x: `[..., in]`.
    kernel: W, `[out, in]`: an array, or one in 4 bits (`core.quant`), which has no
      gradient.
    adapter: None, or (A `[rank, in]`, B `[out, rank]`).
    scale: alpha / rank.
    adapter_x: what the adapter sees in place of x (x after dropout).
    inp: logical name of the input axis, by which a weight in 4 bits is split.

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
  inner = jnp.einsum('...i,ri->...r', x if adapter_x is None else adapter_x, a)
  return y + _expand(inner * jnp.asarray(scale, x.dtype), b)


@jax.custom_vjp
def _expand(inner, b):
  """`[..., rank]`, B `[out, rank]` -> `[..., out]`.

  The gradient of B is taken as (innerᵀ g)ᵀ. As gᵀ inner, which is what JAX makes of it,
  XLA on a CPU copies all of g transposed, out / rank times as much.
  """
  return jnp.einsum('...r,or->...o', inner, b)


def _expand_backward(kept, g):
  inner, b = kept
  turned = jnp.einsum('...r,...o->ro', inner, g)
  turned = jax.lax.optimization_barrier(turned)  # or XLA turns the product back
  return jnp.einsum('...o,or->...r', g, b), turned.T


_expand.defvjp(lambda inner, b: (_expand(inner, b), (inner, b)), _expand_backward)


def expand_to_last_axis(vector, x):
  """`[D]` -> `[1, ..., D]`: broadcast along the last axis of x, said aloud."""
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def rms_norm(x, scale, eps: float):
  """x / rms(x) * scale, in float32; Zhang and Sennrich 2019."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  return (y * expand_to_last_axis(scale, x).astype(jnp.float32)).astype(x.dtype)


def layer_norm(x, scale, bias, eps: float):
  """(x - mean) / std * scale + bias, in float32."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, -1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
  y = y * expand_to_last_axis(scale, x).astype(jnp.float32) + expand_to_last_axis(
    bias, x
  ).astype(jnp.float32)
  return y.astype(x.dtype)


def quick_gelu(x):
  """x sigmoid(1.702 x), as CLIP was trained."""
  return x * jax.nn.sigmoid(1.702 * x)


# ---------------------------------------------------------------- modules


def declare(
  module: nn.Module, name: str, shape, axes, init, collection='params'
) -> Any:
  """A weight with logical axes; returns its value (an array or a quantized leaf).

  `variable` rather than `param`, which would refuse a leaf that is not one array.
  """

  def boxed():
    value = init(module.make_rng('params'), shape, jnp.float32)
    return nn.LogicallyPartitioned(value, axes)

  return module.variable(collection, name, boxed).value


class Linear(nn.Module):
  """`linear` with named weights: W `[out, in]`, A `[rank, in]`, B `[out, rank]`.

  A starts uniform in ±1/sqrt(in) and B at zero, as in peft. Dropout acts on the
  adapter's input, and only when the caller passes a `dropout` key.
  """

  features: int
  axes: tuple[str, str]  # logical names of the input and of the output
  bias: bool = False
  lora: LoraConfig | None = None
  init: Callable = normal

  @nn.compact
  def __call__(self, x, held: Layer | None = None):
    """held: the weight that is declared here, where it stands in the stack of all."""
    inp, out = self.axes
    fan_in = x.shape[-1]
    kernel = declare(self, 'w', (self.features, fan_in), (out, inp), self.init)
    kernel = kernel if held is None else held
    adapter, scale, adapter_x = None, 1.0, None
    if self.lora is not None and (
      self.is_initializing() or self.has_variable('lora', 'a')
    ):
      rank = self.lora.rank
      uniform = lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5
      )
      a = declare(self, 'a', (rank, fan_in), ('rank', inp), uniform, 'lora')
      b = declare(self, 'b', (self.features, rank), (out, 'rank'), zeros, 'lora')
      adapter, scale = (a, b), self.lora.alpha / rank
      if self.lora.dropout and self.has_rng('dropout'):
        adapter_x = nn.Dropout(self.lora.dropout, deterministic=False)(x)
    y = linear(x, kernel, adapter, scale=scale, adapter_x=adapter_x, inp=inp)
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
  def __call__(self):
    return declare(self, 'w', self.shape, self.axes, self.init)


class RmsNorm(nn.Module):
  eps: float
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x):
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
  eps: float
  axis: str = 'vision'

  @nn.compact
  def __call__(self, x):
    scale = declare(self, 'scale', x.shape[-1:], (self.axis,), ones)
    bias = declare(self, 'bias', x.shape[-1:], (self.axis,), zeros)
    return layer_norm(x, scale, bias, self.eps)


def stack(block, length: int, in_axes, *, remat: str = 'none', unroll: bool = False):
  """`length` copies of a block as one scanned module; weights get a leading layer axis.

  Args:
    block: a linen class whose call is `(x, *args) -> (x, kept)`.
    in_axes: for each of args, `nn.broadcast` or the axis that runs over layers.
    remat: 'none' keeps all activations, 'dots' the products without batch dimension
      (not those with packed weights, which have a gradient of their own), 'names'
      what the block calls by a name of `SAVED`, 'full' only the block's input.
    unroll: no loop over few layers: it would cost more in stacking what the gradient
      needs than it saves in compilation.
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
