"""A network of two layers and 16 dimensions, with random weights, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.settings.models import (
  ClipTextConfig,
  ClipVisionConfig,
  LlamaConfig,
  LoraConfig,
  VlmConfig,
)
from vlm_rlaif_jax.weights import network_shapes

CFG = VlmConfig(
  name='test',
  vision=ClipVisionConfig(
    image_size=16, patch_size=8, width=16, mlp=32, layers=3, heads=2
  ),
  text=ClipTextConfig(
    vocab=64, context=8, width=16, mlp=32, layers=2, heads=2, eos_id=2
  ),
  joint=8,
  llama=LlamaConfig(
    vocab=64,
    width=16,
    mlp=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    max_positions=256,
  ),
  dtype='float32',
  remat='none',
)
LORA = LoraConfig(rank=4, alpha=8.0)

# As programs: without one around it, each operation of a network is compiled by itself.
hidden_states = jax.jit(vlm.hidden, static_argnums=0)
patch_features = jax.jit(vlm.patch_features, static_argnums=0)
sample_answers = jax.jit(sampler.sample, static_argnums=(0, 6))


def random_params(seed: int = 0, cfg: VlmConfig = CFG) -> dict:
  """Larger than an initialization, so that every part matters; compiles nothing."""
  rng = np.random.default_rng(seed)
  spread = {'w': (0, 0.1), 'scale': (1, 0.2), 'bias': (0, 0.1), 'logit_scale': (2.7, 0)}

  def drawn(name: str, leaf) -> jax.Array:
    return jnp.array(rng.normal(*spread[name.split('/')[-1]], leaf.shape), jnp.float32)

  leaves = trees.flatten(network_shapes.abstract_params(cfg))
  return trees.unflatten({name: drawn(name, leaf) for name, leaf in leaves.items()})


def random_adapter(
  seed: int = 1, cfg: VlmConfig = CFG, lora: LoraConfig = LORA
) -> dict:
  """With B away from zero."""
  rng = np.random.default_rng(seed)
  drawn = lambda x: jnp.array(rng.normal(0, 0.3, x.shape), jnp.float32)
  return jax.tree.map(drawn, network_shapes.abstract_adapter(cfg, lora))


def clip_pixels(squares: np.ndarray) -> np.ndarray:
  """Normalizes `uint8[..., 3]` as CLIP's processor of transformers, bit for bit."""
  unit = (np.arange(256) * (1 / 255)).astype(np.float32)  # multiplied in float64
  return (unit[squares] - image.MEAN) / image.STD
