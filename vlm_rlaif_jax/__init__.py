"""VLM-RLAIF in JAX: `load` a checkpoint and ask it about a video."""

from typing import Any


def __getattr__(name: str) -> Any:
  """`load`, and what `load` is told, imported when they are first asked for."""
  if name == 'load':
    from vlm_rlaif_jax.api import load

    return load
  if name == 'RewardPrompt':
    from vlm_rlaif_jax.settings.reward import RewardPrompt

    return RewardPrompt
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
