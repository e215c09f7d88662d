"""Maps tower features to visual tokens: a two-layer MLP, then pooling.

Pooling over space and time comes after the projector. Video-ChatGPT pools before its
projector, which is linear; with an MLP the order matters.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.nn import layers


class Projector(nn.Module):
  """Two linear layers with bias and an activation between, `[..., C]` -> `[..., D]`.

  Attributes:
    features: D.
    activation: 'gelu' as in the released code, 'relu' as printed in the paper.
  """

  features: int
  activation: Literal['gelu', 'relu'] = 'gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.Linear(self.features, ('vision', 'embed'), bias=True, name='in')(x)
    if self.activation == 'gelu':
      x = jax.nn.gelu(x, approximate=False)
    else:
      x = jax.nn.relu(x)
    return layers.Linear(self.features, ('embed', 'embed_out'), bias=True, name='out')(
      x
    )


def pool(projected: jax.Array) -> jax.Array:
  """Pools `[B, F, P, D]` to F temporal tokens, then P spatial ones, `[B, F + P, D]`.

      t_i = mean over patches of frame i;    s_j = mean over frames of patch j

  Means are computed in float32 and rounded once.
  """
  x = projected.astype(jnp.float32)
  tokens = jnp.concatenate([x.mean(axis=2), x.mean(axis=1)], axis=1)
  return tokens.astype(projected.dtype)
