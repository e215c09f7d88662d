"""From tower features to visual tokens: a two-layer MLP, then pooling over space and
time.

Pooling comes after the non-linear projector (Video-ChatGPT pools before its linear one;
with an MLP the two differ), and the temporal tokens come first.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import layers


class Projector(nn.Module):
  """Linear, activation, Linear, both with bias: `[..., C]` -> `[..., D]`."""

  features: int
  activation: Literal['gelu', 'relu'] = 'gelu'  # as released; as printed in the paper

  @nn.compact
  def __call__(self, x):
    x = layers.Linear(self.features, ('vision', 'embed'), bias=True, name='in')(x)
    if self.activation == 'gelu':
      x = jax.nn.gelu(x, approximate=False)
    else:
      x = jax.nn.relu(x)
    return layers.Linear(self.features, ('embed', 'embed_out'), bias=True, name='out')(
      x
    )


def pool(projected):
  """`[B, F, P, D]` -> `[B, F + P, D]`: F temporal tokens, then P spatial ones.

      t_i = mean over patches of frame i;    s_j = mean over frames of patch j

  Means accumulate in float32 and are rounded once.
  """
  x = projected.astype(jnp.float32)
  tokens = jnp.concatenate([x.mean(axis=2), x.mean(axis=1)], axis=1)
  return tokens.astype(projected.dtype)
