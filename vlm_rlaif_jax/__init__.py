"""VLM-RLAIF in JAX: `load` reads a checkpoint that answers questions about videos."""

from typing import Any


def __getattr__(name: str) -> Any:
  """Imports `load` and `RewardPrompt` on first use: `import` alone loads no JAX."""
  if name == 'load':
    from vlm_rlaif_jax.api import load

    return load
  if name == 'RewardPrompt':
    from vlm_rlaif_jax.settings.reward import RewardPrompt

    return RewardPrompt
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
