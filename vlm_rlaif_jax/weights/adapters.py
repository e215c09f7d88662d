"""LoRA adapters as trees: fresh ones, and merged into a base."""

import jax
import numpy as np
from flax.core import meta

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.weights import artifacts, readers
from vlm_rlaif_jax.weights.network_shapes import abstract
from vlm_rlaif_jax.weights.stacked import filled, is_leaf, layers_of


def init_adapter(cfg: VlmConfig, lora: LoraConfig, key, dtype='float32') -> dict:
  """A fresh adapter: A uniform, B zero, so that it changes nothing yet."""
  shapes = meta.unbox(abstract(cfg, lora))['lora']
  leaves = trees.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  made = {}
  for k, (name, leaf) in zip(keys, leaves.items(), strict=True):
    bound = leaf.shape[-1] ** -0.5 if name.endswith('/a') else 0.0
    made[name] = jax.random.uniform(k, leaf.shape, dtype, -bound, bound)
  return trees.unflatten(made)


def check_adapter(adapter, cfg: VlmConfig, lora: LoraConfig, where: str) -> None:
  """Refuses an adapter with leaves missing, left over or misshapen."""
  expected = trees.flatten(meta.unbox(abstract(cfg, lora))['lora'])
  problems = trees.mismatches(trees.flatten(adapter), expected)
  if problems:
    raise artifacts.ArtifactError(f'{where}: adapter does not fit: {problems[0]}')


def merge(params: dict, adapter: dict, lora: LoraConfig) -> dict:
  """W + alpha / rank B A, in the dtype of W; what was in NF4 no longer is."""
  flat = trees.flatten(params, is_leaf=is_leaf)
  pairs = trees.flatten(adapter)
  for name, b in pairs.items():
    if name.endswith('/b'):
      stem = name[:-2]
      w, a, b = flat[f'{stem}/w'], np.asarray(pairs[f'{stem}/a']), np.asarray(b)
      merged = (
        readers.merged(*layer, lora.alpha / lora.rank)
        for layer in zip(layers_of(w), a, b, strict=True)
      )
      flat[f'{stem}/w'] = filled(w, merged, w.dtype)
  return trees.unflatten(flat)


def lora_of(artifact: artifacts.Artifact) -> LoraConfig:
  try:
    fields = artifact.info['lora']
    return LoraConfig(**{**fields, 'targets': tuple(fields['targets'])})
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(f'artifact.json: lora section is damaged ({error})') from None
