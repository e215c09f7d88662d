"""LoRA adapters as trees: new ones, checks against a network, merging into a base."""

from typing import Any

import jax
import numpy as np
from flax.core import meta

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.weights import artifacts, merging
from vlm_rlaif_jax.weights.network_shapes import abstract
from vlm_rlaif_jax.weights.stacked import is_leaf, iterate_layers, stack_layers


def init_adapter(
  cfg: VlmConfig, lora: LoraConfig, key: jax.Array, dtype: str = 'float32'
) -> dict[str, Any]:
  """Returns a new adapter: A uniform, B zero, so that it changes nothing yet."""
  shapes = meta.unbox(abstract(cfg, lora))['lora']
  leaves = trees.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  flat = {}
  for leaf_key, (name, leaf) in zip(keys, leaves.items(), strict=True):
    bound = leaf.shape[-1] ** -0.5 if name.endswith('/a') else 0.0
    flat[name] = jax.random.uniform(leaf_key, leaf.shape, dtype, -bound, bound)
  return trees.unflatten(flat)


def check_adapter(adapter: Any, cfg: VlmConfig, lora: LoraConfig, place: str) -> None:
  """Raises ArtifactError if leaves are missing, unexpected or misshapen.

  Args:
    place: names the adapter in the error.
  """
  expected = trees.flatten(meta.unbox(abstract(cfg, lora))['lora'])
  problems = trees.mismatches(trees.flatten(adapter), expected)
  if problems:
    raise artifacts.ArtifactError(f'{place}: adapter does not fit: {problems[0]}')


def merge(
  params: dict[str, Any], adapter: dict[str, Any], lora: LoraConfig
) -> dict[str, Any]:
  """Returns W + alpha / rank B A for every linear, in the dtype of W.

  Matrices in NF4 are unpacked and stay so.
  """
  flat = trees.flatten(params, is_leaf=is_leaf)
  pairs = trees.flatten(adapter)
  for name, b in pairs.items():
    if name.endswith('/b'):
      stem = name[:-2]
      w, a, b = flat[f'{stem}/w'], np.asarray(pairs[f'{stem}/a']), np.asarray(b)
      layers = (
        merging.merge_matrix(*layer, lora.alpha / lora.rank)
        for layer in zip(iterate_layers(w), a, b, strict=True)
      )
      flat[f'{stem}/w'] = stack_layers(w, layers, w.dtype)
  return trees.unflatten(flat)


def lora_of(artifact: artifacts.Artifact, section: str = 'lora') -> LoraConfig:
  """Returns the settings of an artifact's adapter.

  Args:
    section: of `artifact.json`; 'critic_lora' for the value adapter of PPO.

  Raises:
    ConfigError: they are damaged, or not those that the stage wrote: another alpha is
      another adapter, and the fingerprint of its weights would not tell.
  """
  written = artifact.info.get('lora_fingerprint')  # none before it was recorded
  if written not in (None, artifacts.lora_fingerprint(artifact.info)):
    raise ConfigError(
      f'artifact.json: section {section} was edited ({artifact.info.get(section)}); '
      'put back what the stage wrote, or train the stage again with these settings'
    )
  try:
    fields = artifact.info[section]
    return LoraConfig(**{**fields, 'targets': tuple(fields['targets'])})
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(
      f'artifact.json: section {section} is damaged ({error!r}); make the stage again'
    ) from None
