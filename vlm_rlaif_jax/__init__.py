"""VLM-RLAIF in JAX: `load` a checkpoint and ask it about a video."""


def __getattr__(name: str):
  """`vlm_rlaif_jax.load`, imported when it is first asked for."""
  if name == 'load':
    from vlm_rlaif_jax.api import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
