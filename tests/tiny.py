"""A network of two layers and 16 dimensions, with random weights, for tests."""

import jax

from vlm_rlaif_jax.config.models import (
  ClipTextConfig,
  ClipVisionConfig,
  LlamaConfig,
  LoraConfig,
  VlmConfig,
)
from vlm_rlaif_jax.train import bases

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


def random_params(seed: int = 0, cfg: VlmConfig = CFG) -> dict:
  """Larger than an initialisation, so that every part matters."""
  params = bases.init(cfg, jax.random.key(seed))
  return jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)


def random_adapter(
  seed: int = 1, cfg: VlmConfig = CFG, lora: LoraConfig = LORA
) -> dict:
  """With B away from zero."""
  leaves, tree = jax.tree.flatten(bases.abstract_adapter(cfg, lora))
  keys = jax.random.split(jax.random.key(seed + 100), len(leaves))

  @jax.jit
  def draw(keys):
    return [0.3 * jax.random.normal(keys[i], x.shape) for i, x in enumerate(leaves)]

  return jax.tree.unflatten(tree, draw(keys))
